"""A sweep's folder: which one to continue, each cell's frozen config and status, earlier attempts, and the lock. Light."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from peftrun.artifacts import records
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

ATTEMPTS, SUMMARY, MULTIRUN, LOCK = "attempts", "sweep.json", "multirun.yaml", ".lock"
WAITING, RUNNING, COMPLETED, FAILED, STOPPED = "waiting", "running", "completed", "failed", "stopped"


def choose_folder(named: Path, dated: bool, ids: Sequence[str]) -> Path:
    """The folder of a sweep: `named`, or, if its name is only a date, the newest earlier sweep beside it that holds one of the cells `ids`.

    Args: dated: `named` was made of date and time, not chosen by the user.
    """
    if not dated or not named.parent.is_dir():
        return named
    wanted_ids = set(ids)
    newest = "", "", named  # start time, name, folder
    for sweep in named.parent.iterdir():
        if sweep == named or not sweep.is_dir():
            continue
        if any(cell.name in wanted_ids and (cell / CONFIG).is_file() for cell in sweep.iterdir()):
            started = ""
            with suppress(ArtifactError):
                started = str(atomic_files.read_json(sweep / SUMMARY).get("started") or "")
            newest = max(newest, (started, sweep.name, sweep))
    return newest[2]


def remove_new_folder(sweep: Path) -> None:
    """Remove the folder that Hydra has just made if it holds nothing but Hydra's own file, and parents that are then empty."""
    if not sweep.is_dir() or {path.name for path in sweep.iterdir()} - {MULTIRUN}:
        return
    (sweep / MULTIRUN).unlink(missing_ok=True)
    working_dirs = (Path.cwd(), *Path.cwd().parents)
    for path in (sweep, *list(sweep.parents)[:2]):  # outputs/sweeps, outputs: when this sweep was the first
        if path in working_dirs or any(path.iterdir()):
            return
        path.rmdir()


@contextmanager
def lock_folder(sweep: Path) -> Iterator[None]:
    """Lock a sweep's folder for this process. The operating system releases the lock of a killed process.

    Raises: ArtifactError: another process runs this sweep.
    """
    sweep.mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ArtifactError(
            f"{sweep}: another process runs this sweep; wait for it, or type hydra.sweep.dir=ANOTHER_FOLDER"
        ) from error
    try:
        yield
    finally:
        lock.release()


def freeze_config(cell: Path, config: Callable[[], str]) -> None:
    """Write a cell's resolved config, unless an earlier launch has: YAML files edited since then change nothing."""
    if not (cell / CONFIG).is_file():
        atomic_files.write_text(cell / CONFIG, config())


def read_status(cell: Path) -> str:
    """Status of a cell: waiting, running (or killed, if no process holds the lock), completed, failed, or stopped early. Damaged record: failed."""
    if not (cell / RECORD).is_file():
        return WAITING
    try:
        return str(records.read_record(cell).get("status"))
    except ArtifactError:
        return FAILED


def set_aside(cell: Path) -> None:
    """Move a cell's folder to attempts/CELL-NUMBER. A new folder then holds its config alone."""
    config = (cell / CONFIG).read_text(encoding="utf-8")
    paths = (cell.parent / ATTEMPTS / f"{cell.name}-{number}" for number in itertools.count(1))
    target = next(path for path in paths if not path.exists())
    target.parent.mkdir(exist_ok=True)
    # Renamed whole, so that a process killed here leaves either the old folder or the new one.
    os.rename(cell, target)
    atomic_files.write_text(cell / CONFIG, config)


def list_attempts(cell: Path) -> list[Path]:
    """Earlier attempts at a cell, oldest first."""
    attempts = (cell.parent / ATTEMPTS).glob(f"{cell.name}-*")
    return sorted(attempts, key=lambda path: int(path.name.rsplit("-", 1)[1]))  # -10 comes after -9
