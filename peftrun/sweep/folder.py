"""A sweep's folder: which one to continue, each cell's frozen configuration and status, attempts set aside, one process at a time. Light."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

ATTEMPTS, SUMMARY, MULTIRUN, LOCK = "attempts", "sweep.json", "multirun.yaml", ".lock"
WAITING, RUNNING, COMPLETED, FAILED, STOPPED = "waiting", "running", "completed", "failed", "stopped"


def choose_folder(named: Path, dated: bool, ids: Sequence[str]) -> Path:
    """The folder of a sweep: `named`, or, if nobody named it, the newest earlier one beside it that holds one of the cells `ids`.

    Args: dated: `named` is a new name made of date and time.
    """
    if not dated or not named.parent.is_dir():
        return named
    wanted = set(ids)
    earlier = [path for path in named.parent.iterdir() if path != named and path.is_dir() and _has_cell(path, wanted)]
    return max(earlier, key=lambda path: (_read_start_time(path), path.name), default=named)


def _has_cell(sweep: Path, ids: set[str]) -> bool:
    return any(one.name in ids and (one / CONFIG).is_file() for one in sweep.iterdir())


def _read_start_time(sweep: Path) -> str:
    try:
        return str(atomic_files.read_json(sweep / SUMMARY).get("started") or "")
    except ArtifactError:
        return ""


def remove_new_folder(sweep: Path) -> None:
    """Takes away the folder that Hydra has just made, with nothing but its own file in it, and parents that are empty then."""
    if not sweep.is_dir() or {path.name for path in sweep.iterdir()} - {MULTIRUN}:
        return
    (sweep / MULTIRUN).unlink(missing_ok=True)
    here = (Path.cwd(), *Path.cwd().parents)
    for one in (sweep, *list(sweep.parents)[:2]):  # outputs/sweeps, outputs: when this sweep was the first
        if one in here or any(one.iterdir()):
            return
        one.rmdir()


@contextmanager
def lock_folder(sweep: Path) -> Iterator[None]:
    """Holds a sweep's folder for this process; the lock of a process that was killed is free.

    Raises: ArtifactError: another process runs this sweep.
    """
    sweep.mkdir(parents=True, exist_ok=True)
    held = FileLock(sweep / LOCK)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise ArtifactError(
            f"{sweep}: another process runs this sweep; wait for it, or type hydra.sweep.dir=ANOTHER_FOLDER"
        ) from error
    try:
        yield
    finally:
        held.release()


def freeze_config(cell: Path, config: Callable[[], str]) -> None:
    """Writes a cell's resolved configuration, unless an earlier launch has: what is edited later changes nothing."""
    if not (cell / CONFIG).is_file():
        atomic_files.write_text(cell / CONFIG, config())


def read_status(cell: Path) -> str:
    """waiting, running (or killed, if nobody holds the sweep), completed, failed, or stopped early. A torn record: failed."""
    if not (cell / RECORD).is_file():
        return WAITING
    try:
        return str(atomic_files.read_json(cell / RECORD).get("status"))
    except ArtifactError:
        return FAILED


def set_aside(cell: Path) -> None:
    """Moves an attempt at a cell to attempts/, with all it left; the cell's folder then holds its configuration alone."""
    config = (cell / CONFIG).read_text(encoding="utf-8")
    target = _find_free_path(cell)
    target.parent.mkdir(exist_ok=True)
    os.rename(cell, target)
    atomic_files.write_text(cell / CONFIG, config)


def list_attempts(cell: Path) -> list[Path]:
    """Earlier attempts at a cell, oldest first."""
    found = (cell.parent / ATTEMPTS).glob(f"{cell.name}-*")
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _find_free_path(cell: Path) -> Path:
    names = (cell.parent / ATTEMPTS / f"{cell.name}-{number}" for number in itertools.count(1))
    return next(path for path in names if not path.exists())
