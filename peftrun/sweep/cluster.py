"""Groups of cells handed to the workers of a cluster; a group whose worker died is sent again. Light.

A worker runs `work` on one group. What became of a cell lies in its own record; here it only matters whether a worker came to an end.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.errors import ArtifactError, ConfigError
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.runs import torchrun

POLL = 0.2  # seconds between looks at the workers
STOPPING = 15.0  # seconds that workers have to finish their records when they are told to stop
VISIBLE = 5.0  # seconds that a shared file system may take to show a new folder to another machine
END_STATUSES = {"completed", "failed", "stopped"}


@dataclass(frozen=True)
class JobEnd:
    """How a worker ended: well (both empty), dead before its group was done, or unable to do any group at all."""

    died: str = ""
    fault: str = ""


@dataclass(frozen=True)
class ClusterBackend:
    """A cluster, as far as it is needed here.

    Attributes:
        name: what is told to the user.
        start: sends a group to a worker and returns a handle at once.
        end: how the worker of a handle ended; None while it works.
        stop: ends the worker of a handle early.
    """

    name: str
    start: Callable[[Sequence[Path]], Any]
    end: Callable[[Any], JobEnd | None]
    stop: Callable[[Any], None]


@dataclass
class SubmittedJob:
    """A group, how often its worker died, and the records its cells had before."""

    number: int
    folders: list[Path]
    before: dict[Path, str] = field(default_factory=dict)
    deaths: int = 0

    def list_unfinished(self) -> list[Path]:
        """The cells that did not come to an end of their own since the group was first sent."""
        return [one for one in self.folders if not self._ended(one)]

    def _ended(self, folder: Path) -> bool:
        status = _read_record(folder).get("status")
        return status in END_STATUSES and (status != "failed" or _read_record_text(folder) != self.before[folder])


def run_on_cluster(
    groups: Sequence[Sequence[Path]], engine: ClusterBackend, parallel: int | None, max_retries: int
) -> None:
    """Returns when every group has ended; cells whose worker died too often then have a failed record with the reason.

    Args: parallel: workers at once; None: as many as there are groups, and the cluster puts them in a queue.

    Raises: ArtifactError: a worker does not see the sweep's folder.
    """
    waiting = deque(_build_job(number, group) for number, group in enumerate(groups, 1))
    running: dict[Any, SubmittedJob] = {}
    console.print_info(_format_opening(groups, engine, parallel))
    with _stop_all_on_error(running, engine):
        while waiting or running:
            while waiting and (parallel is None or len(running) < parallel):
                group = waiting.popleft()
                running[engine.start(group.list_unfinished())] = group
            for handle, group in list(running.items()):
                if end := engine.end(handle):
                    del running[handle]
                    waiting.extend(_handle_end(end, group, len(groups), max_retries))
            time.sleep(POLL)


def _build_job(number: int, group: Sequence[Path]) -> SubmittedJob:
    folders = [one.absolute() for one in group]
    return SubmittedJob(number, folders, {one: _read_record_text(one) for one in folders})


def _format_opening(groups: Sequence[Sequence[Path]], engine: ClusterBackend, parallel: int | None) -> str:
    at_once = f", {parallel} at once" if parallel is not None and parallel < len(groups) else ""
    return (
        f"{engine.name}: {format_count(len(groups), 'group')} of {format_count(sum(map(len, groups)), 'cell')}{at_once}"
    )


@contextmanager
def _stop_all_on_error(running: dict[Any, SubmittedJob], engine: ClusterBackend) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for handle in running:
            engine.stop(handle)
        deadline = time.monotonic() + STOPPING
        while time.monotonic() < deadline and any(engine.end(handle) is None for handle in running):
            time.sleep(POLL)
        raise


def _handle_end(end: JobEnd, group: SubmittedJob, groups: int, max_retries: int) -> list[SubmittedJob]:
    """What is to be sent again: the group, if its worker died and may still be tried."""
    if end.fault:
        raise ArtifactError(end.fault)
    left = group.list_unfinished()
    if not left:
        console.print_info(f"group {group.number} of {groups}: done")
        return []
    group.deaths += 1
    reason = " ".join((end.died or "it ended without having done all cells").split())[:300]
    if group.deaths <= max_retries:
        console.print_warning(
            f"group {group.number} of {groups}: the worker died ({reason}); sent again, {group.deaths} of {max_retries}"
        )
        return [group]
    console.print_warning(
        f"group {group.number} of {groups}: given up, {format_count(len(left), 'cell')} not done: {reason}"
    )
    for folder in left:
        _record_failure(
            folder, f"the worker died {format_count(group.deaths, 'time')}, and is not tried again: {reason}"
        )
    return []


def _record_failure(folder: Path, reason: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    opening = {"started": now, "seconds": 0.0} if _read_record_text(folder) == "" else _read_record(folder)
    ending = {"status": "failed", "error": reason, "finished": now}
    atomic_files.write_json(folder / RECORD, opening | ending)


def _read_record_text(folder: Path) -> str:
    path = folder / RECORD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read_record(folder: Path) -> dict[str, Any]:
    return atomic_files.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}


def run_group(folders: Sequence[str], where: str, threads: int | None) -> str:
    """Runs one group on a worker's machine. Returns one line if this machine cannot do that, else nothing.

    Args:
        folders: the cells.
        where: the folder the command was typed in: relative paths of the cells start there.
        threads: processors of this worker; None: what the cluster says, or all.
    """
    if hidden := _find_hidden_folder(folders, where):
        return (
            f"hydra.sweep.dir: the worker on {platform.node()} does not see {hidden}; "
            "all machines must share this folder: type hydra.sweep.dir=FOLDER on a shared file system"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.chdir(where)
    from peftrun.sweep import run_cells as cells

    cells.run([Path(one) for one in folders])
    return ""


def _find_hidden_folder(folders: Sequence[str], where: str) -> str:
    """The first folder that cannot be seen from here; empty if all can."""
    deadline = time.monotonic() + VISIBLE
    for folder in (where, *folders):
        wanted = Path(folder) if folder == where else Path(folder) / CONFIG
        while not wanted.exists():
            if time.monotonic() > deadline:
                return str(folder)
            time.sleep(POLL)
    return ""


def count_threads(parallel: int | None, groups: int) -> int:
    """Processors for each of several workers on this machine, so that their threads do not wait for each other's turns."""
    return torchrun.share_cpus(max(1, min(parallel or groups, groups)))


def read_int_option(options: dict[str, Any], engine: str, key: str, least: int) -> int | None:
    """A whole number of at least `least` among the options of a launcher, or None. Raises: ConfigError: it is neither."""
    value = options.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ConfigError(
            f"hydra.launcher.{key}={value}: must be a whole number of at least {least} with {engine}; type hydra.launcher.{key}={least}"
        )
    return value
