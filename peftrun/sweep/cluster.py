"""Send groups of cells to the workers of a cluster; a group whose worker died is sent again. Light.

A worker runs `run_group` on one group. Results are in the records of the cells; here it only matters whether the worker ended.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import records
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.errors import ArtifactError, ConfigError
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.runs import torchrun

POLL = 0.2  # seconds between polls of the workers
STOPPING = 15.0  # seconds that workers have to finish their records after the signal to stop
VISIBLE = 5.0  # seconds that a shared file system may take to show a new folder to another machine
END_STATUSES = {"completed", "failed", "stopped"}


@dataclass(frozen=True)
class JobEnd:
    """How a worker ended. Both empty: normally. `died`: why it ended before its group was done. `fault`: why it cannot run any group."""

    died: str = ""
    fault: str = ""


@dataclass(frozen=True)
class ClusterBackend:
    """The operations needed of a cluster.

    Attributes:
        name: shown to the user.
        start: sends a group to a worker and returns a handle at once.
        end: how the worker of a handle ended; None while it runs.
        stop: ends the worker of a handle early.
    """

    name: str
    start: Callable[[Sequence[Path]], Any]
    end: Callable[[Any], JobEnd | None]
    stop: Callable[[Any], None]


@dataclass
class SubmittedJob:
    """A group of cell folders, the text of their records before it was first sent, and how often its worker died."""

    number: int
    folders: list[Path]
    before: dict[Path, str] = field(default_factory=dict)
    deaths: int = 0

    def list_unfinished(self) -> list[Path]:
        """The cells that have not ended since the group was first sent."""
        unfinished = []
        for folder in self.folders:
            status = _read_record(folder).get("status")
            # A failed record from before this sweep is no result: the cell is tried again.
            is_new = status != "failed" or _read_record_text(folder) != self.before[folder]
            if status not in END_STATUSES or not is_new:
                unfinished.append(folder)
        return unfinished


def run_on_cluster(
    groups: Sequence[Sequence[Path]], engine: ClusterBackend, parallel: int | None, max_retries: int
) -> None:
    """Run all groups and return when they have ended. Cells whose worker died too often then have a failed record with the reason.

    Args: parallel: workers at once; None: all groups at once, and the cluster queues them.

    Raises: ArtifactError: a worker does not see the sweep's folder.
    """
    waiting: deque[SubmittedJob] = deque()
    for number, group in enumerate(groups, 1):
        folders = [folder.absolute() for folder in group]
        waiting.append(SubmittedJob(number, folders, {folder: _read_record_text(folder) for folder in folders}))
    running: dict[Any, SubmittedJob] = {}
    cells = format_count(sum(map(len, groups)), "cell")
    at_once = f", {parallel} at once" if parallel is not None and parallel < len(groups) else ""
    console.print_info(f"{engine.name}: {format_count(len(groups), 'group')} of {cells}{at_once}")
    try:
        while waiting or running:
            while waiting and (parallel is None or len(running) < parallel):
                job = waiting.popleft()
                running[engine.start(job.list_unfinished())] = job
            for handle, job in list(running.items()):
                if end := engine.end(handle):
                    del running[handle]
                    waiting.extend(_handle_end(end, job, len(groups), max_retries))
            time.sleep(POLL)
    except BaseException:  # also Ctrl-C: no job runs on without the command
        for handle in running:
            engine.stop(handle)
        deadline = time.monotonic() + STOPPING
        while time.monotonic() < deadline and any(engine.end(handle) is None for handle in running):
            time.sleep(POLL)
        raise


def stop_processes(processes: Sequence[Any]) -> None:
    """End processes (of psutil) and their children; those that still run after STOPPING seconds are killed."""
    import psutil

    family = list(processes)
    for process in processes:
        with suppress(psutil.Error):
            family += process.children(recursive=True)
            process.terminate()
    for survivor in psutil.wait_procs(family, timeout=STOPPING)[1]:
        with suppress(psutil.Error):
            survivor.kill()
    psutil.wait_procs(family, timeout=STOPPING)


def report_earlier_jobs(count: int) -> None:
    """A line on jobs of a killed launch, which are ended before their cells are sent again."""
    jobs = "1 job of an earlier launch still runs" if count == 1 else f"{count} jobs of an earlier launch still run"
    console.print_info(f"{jobs}; ended now, their cells are continued")


def _handle_end(end: JobEnd, job: SubmittedJob, groups: int, max_retries: int) -> list[SubmittedJob]:
    """The jobs to send again: this one, if its worker died and has retries left."""
    if end.fault:
        raise ArtifactError(end.fault)
    unfinished = job.list_unfinished()
    if not unfinished:
        console.print_info(f"group {job.number} of {groups}: done")
        return []
    job.deaths += 1
    reason = " ".join((end.died or "it ended without having done all cells").split())[:300]
    if job.deaths <= max_retries:
        console.print_warning(
            f"group {job.number} of {groups}: the worker died ({reason}); sent again, {job.deaths} of {max_retries}"
        )
        return [job]
    console.print_warning(
        f"group {job.number} of {groups}: given up, {format_count(len(unfinished), 'cell')} not done: {reason}"
    )
    error = f"the worker died {format_count(job.deaths, 'time')}, and is not tried again: {reason}"
    for folder in unfinished:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        # A worker killed in the middle of a run leaves a record with status "running": its facts are kept.
        record = _read_record(folder) or {"started": now, "seconds": 0.0}
        atomic_files.write_json(folder / RECORD, record | {"status": "failed", "error": error, "finished": now})
    return []


def _read_record_text(folder: Path) -> str:
    path = folder / RECORD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read_record(folder: Path) -> dict[str, Any]:
    return records.read_record(folder) if (folder / RECORD).is_file() else {}


def run_group(folders: Sequence[str], where: str, threads: int | None) -> str:
    """Run one group on a worker's machine. Returns one line if this machine cannot do that, else an empty string.

    Args:
        folders: the cells.
        where: the working directory of the command, from which relative paths in the cells start.
        threads: CPU threads of this worker; None: what the cluster sets, or all.
    """
    deadline = time.monotonic() + VISIBLE
    for folder in (where, *folders):
        path = Path(folder) if folder == where else Path(folder) / CONFIG
        while not path.exists():
            if time.monotonic() > deadline:
                return (
                    f"hydra.sweep.dir: the worker on {platform.node()} does not see {folder}; "
                    "all machines must share this folder: type hydra.sweep.dir=FOLDER on a shared file system"
                )
            time.sleep(POLL)
    # Set before torch is imported: waiting OpenMP threads then sleep, and leave the cores to other workers of this machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.chdir(where)
    from peftrun.sweep import run_cells

    run_cells.run([Path(folder) for folder in folders])
    return ""


def count_threads(parallel: int | None, groups: int) -> int:
    """CPU threads for each of several workers on this machine: more would make them wait for each other."""
    return torchrun.share_cpus(max(1, min(parallel or groups, groups)))


def read_int_option(options: dict[str, Any], engine: str, key: str, least: int) -> int | None:
    """A whole number of at least `least` among a launcher's options, or None. Raises: ConfigError: it is neither."""
    value = options.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ConfigError(
            f"hydra.launcher.{key}={value}: must be a whole number of at least {least} with {engine}; type hydra.launcher.{key}={least}"
        )
    return value
