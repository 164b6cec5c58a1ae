"""Which tracker is told of a training, and what: the run's own config, its sweep, the earlier attempt that it continues. Light."""

import dataclasses
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from peftrun import console, trackers
from peftrun.config import override_syntax, usage
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import minimal_overrides
from peftrun.errors import PeftrunError
from peftrun.io import atomic_files
from peftrun.trackers.tensorboard import EVENTS_DIR

UNTRACKED_GROUPS = ("tracker", "slots", "template")  # groups that say nothing of what is trained


def start_run_tracker(spec: RunSpec, out_dir: Path, step: int = 0) -> None:
    """The run's tracker is there, if it has one. Args: step: of the checkpoint that the run goes on from.

    Raises: ConfigError: see `trackers.start`.
    """
    if spec.tracker.name == "none":
        return
    usage.mark_used(spec, ["tracker"])  # all of it is the tracker's, also what it reads when the run ends
    state, sweep = _read_state(spec, out_dir), atomic_files.sweep_of(out_dir)
    group = sweep.name if sweep else None
    values = dataclasses.asdict(usage.strip_tracking(spec))
    told = {
        key: value for key, value in config.flatten_keys(values).items() if key.split(".")[0] not in UNTRACKED_GROUPS
    }
    name = state.get("run_name") or _build_run_name(spec.tracker.run_name, out_dir, group)
    trackers.start_tracking(
        spec.tracker, trackers.Run(out_dir, name, group, told, _list_overrides(values), state.get("id"), step)
    )


def end_run_tracker(spec: RunSpec, out_dir: Path, record: dict[str, Any]) -> None:
    """The tracker is told how the run has ended; never raises for a tracker that is gone."""
    if trackers.is_paused(out_dir):  # by the process that trained
        try:
            start_run_tracker(spec, out_dir, int((record.get("training") or {}).get("steps", 0)))
        except PeftrunError as fault:
            console.print_warning(str(fault.lines[0]))
    trackers.end_tracking(out_dir, record)


def describe_tracker(spec: RunSpec, out_dir: Path) -> list[tuple[str, str]]:
    """Where the run was told, as a row for the closing table; none where it has no tracker."""
    found: Any = spec.tracker
    if found.name == "none":
        return []
    if getattr(found, "mode", None) == "online":
        where = f"project {found.project} at Weights & Biases"
    else:
        where = getattr(found, "uri", None) or console.shorten_path(
            Path(found.folder) if found.folder else out_dir / EVENTS_DIR
        )
    return [("tracker", f"{found.name}: {where} (docs/trackers.md says how to look)")]


def copy_tracker_state(run: Path, out_dir: Path) -> None:
    """A run that continues another goes on in its tracker."""
    if not (run / trackers.STATE).is_file():
        return
    state = atomic_files.read_json(run / trackers.STATE)
    atomic_files.write_json(out_dir / trackers.STATE, {key: value for key, value in state.items() if key != "paused"})
    if state.get("name") == "tensorboard" and (run / EVENTS_DIR).is_dir():
        shutil.copytree(run / EVENTS_DIR, out_dir / EVENTS_DIR)


def take_back(out_dir: Path) -> None:
    """Takes away what `carry` has copied, where no tracker was told of this run yet."""
    if not trackers.live(out_dir):
        (out_dir / trackers.STATE).unlink(missing_ok=True)
        shutil.rmtree(out_dir / EVENTS_DIR, ignore_errors=True)


def _read_state(spec: RunSpec, out_dir: Path) -> dict[str, Any]:
    """Of the tracker's run that goes on; empty for a new one."""
    file = out_dir / trackers.STATE
    state = atomic_files.read_json(file) if file.is_file() else {}
    return state if state.get("name") == spec.tracker.name else {}


def _build_run_name(asked: str | None, out_dir: Path, group: str | None) -> str:
    if asked is None:
        return out_dir.name
    return f"{asked}-{out_dir.name}" if group else asked


def _list_overrides(values: dict[str, Any]) -> list[str]:
    """What was asked for beyond the default run."""
    found = minimal_overrides.diff_values(values, _compose_default())
    return [
        override_syntax.quote_override(key, one)
        for key, (one, _) in found.items()
        if key.split(".")[0] not in UNTRACKED_GROUPS
    ]


@cache
def _compose_default() -> dict[str, Any]:
    from peftrun.composition import compose

    return config.resolve_values(compose.compose_run([]).cfg)
