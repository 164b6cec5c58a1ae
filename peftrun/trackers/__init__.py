"""Trackers of a training: TensorBoard, Trackio, MLflow, Weights & Biases. Light: a library is imported when its tracker begins.

transformers' own callbacks talk to the library's one current run, which they end with the last step. Here a run has a handle of its
own, so that many cells train in one process without mixing; it is told the run's own config, what was measured before and after, and how
the run ended; and a run that goes on from a checkpoint goes on in its tracker. Names of figures are those that transformers uses.
"""

from pathlib import Path
from typing import Any

from peftrun.config.schema.trackers import NoTracker
from peftrun.io import atomic_files
from peftrun.trackers.base import STATE, Outcome, Run, build_outcome
from peftrun.trackers.safe_session import SafeSession

_LIVE: dict[Path, SafeSession] = {}  # run folder → its tracker


def start_tracking(spec: Any, run: Run) -> None:
    """The tracker of this run is there, and knows its config; a run that was paused, or is continued, keeps its identity.

    Raises: ConfigError: the tracker cannot be reached, or its folder cannot be written.
    """
    if isinstance(spec, NoTracker):
        return
    guard = SafeSession.opened(spec, run)
    atomic_files.write_json(run.folder / STATE, {"name": spec.name, "id": guard.id, "run_name": run.name})
    _LIVE[run.folder] = guard


def log_metrics(folder: Path, row: dict[str, Any]) -> None:
    """A row of metrics.jsonl, told to the tracker of the run in `folder`, if it has one."""
    guard = _LIVE.get(folder)
    if guard:
        guard.log(row)


def pause_tracking(folder: Path) -> None:
    """What was told so far is written; another process, or a later attempt, goes on."""
    guard = _LIVE.pop(folder, None)
    if guard:
        guard.pause()
        state = atomic_files.read_json(folder / STATE)
        atomic_files.write_json(folder / STATE, state | {"paused": True})


def live(folder: Path) -> bool:
    """Whether the run's tracker is told by this process."""
    return folder in _LIVE


def is_paused(folder: Path) -> bool:
    """Whether the run's tracker waits for its end, which another process has left to this one."""
    return (
        not live(folder) and (folder / STATE).is_file() and bool(atomic_files.read_json(folder / STATE).get("paused"))
    )


def end_tracking(folder: Path, record: dict[str, Any]) -> None:
    """How the run has ended, and what it has left; nothing where it has no tracker."""
    guard = _LIVE.pop(folder, None)
    if guard:
        guard.end(build_outcome(folder, record))


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
