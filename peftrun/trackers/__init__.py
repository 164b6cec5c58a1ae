"""Experiment trackers: TensorBoard, Trackio, MLflow, Weights & Biases. Light: a library is imported when its tracker starts.

transformers' callbacks log to the library's one current run and end it after the last step. Here each run has its own handle, so that
many cells can train in one process; peftrun's config, the metrics before and after training and the run's outcome are logged; and a run
that continues from a checkpoint continues in its tracker. Metrics have the names that transformers uses.
"""

from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import NoTracker
from peftrun.io import atomic_files
from peftrun.trackers.base import STATE, Outcome, Run, build_outcome
from peftrun.trackers.safe_session import SafeSession

_LIVE: dict[Path, SafeSession] = {}  # run folder → its session


def start_tracking(spec: Any, run: Run) -> None:
    """Starts the tracker and logs the config; a paused or continued run keeps its id in the tracker.

    Raises: ConfigError: the tracker cannot be reached, or its folder cannot be written.
    """
    if isinstance(spec, NoTracker):
        return
    session = SafeSession.opened(spec, run)
    atomic_files.write_json(run.folder / STATE, {"name": spec.name, "id": session.id, "run_name": run.name})
    _LIVE[run.folder] = session


def log_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Logs a row of metrics.jsonl to the tracker of the run in `folder`, if it has one."""
    session = _LIVE.get(folder)
    if session:
        session.log(row)


def pause_tracking(folder: Path) -> None:
    """Flushes and closes the tracker without ending the run; another process or a later attempt continues."""
    session = _LIVE.pop(folder, None)
    if session:
        session.pause()
        state = atomic_files.read_json(folder / STATE)
        atomic_files.write_json(folder / STATE, state | {"paused": True})


def live(folder: Path) -> bool:
    """Whether this process logs to the run's tracker."""
    return folder in _LIVE


def is_paused(folder: Path) -> bool:
    """Whether another process has paused the run's tracker and left ending it to this one."""
    return (
        not live(folder) and (folder / STATE).is_file() and bool(atomic_files.read_json(folder / STATE).get("paused"))
    )


def end_tracking(folder: Path, record: dict[str, Any]) -> None:
    """Logs the outcome and the files of the run, and ends it in the tracker, if it has one."""
    session = _LIVE.pop(folder, None)
    if session:
        session.end(build_outcome(folder, record))


__all__ = [
    "STATE",
    "Outcome",
    "Run",
    "end_tracking",
    "is_paused",
    "live",
    "log_metrics",
    "pause_tracking",
    "start_tracking",
]
