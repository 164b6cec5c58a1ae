"""Starts, continues and ends the tracker of a training run, from its config and its folder. Light."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from peftrun import console, trackers
from peftrun.composition.spec import get_default_values
from peftrun.config import override_syntax, usage
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import minimal_overrides
from peftrun.errors import PeftrunError
from peftrun.io import atomic_files
from peftrun.trackers.tensorboard import EVENTS_DIR

UNTRACKED_GROUPS = ("tracker", "params", "template")  # config groups that do not influence training


def start_run_tracker(spec: RunSpec, out_dir: Path, step: int = 0) -> None:
    """Starts the run's tracker, if it has one. Args: step: of the checkpoint from which the run continues.

    Raises: ConfigError: see `trackers.start_tracking`.
    """
    if spec.tracker.name == "none":
        return
    usage.mark_used(spec, ["tracker"])  # some of its keys are read only when the run ends
    state_file, sweep = out_dir / trackers.STATE, atomic_files.sweep_of(out_dir)
    state = atomic_files.read_json(state_file) if state_file.is_file() else {}
    if state.get("name") != spec.tracker.name:  # an id of another tracker
        state = {}
    group = sweep.name if sweep else None
    values = dataclasses.asdict(usage.strip_tracking(spec))
    logged = {
        key: value for key, value in config.flatten_keys(values).items() if key.split(".")[0] not in UNTRACKED_GROUPS
    }
    run_name = spec.tracker.run_name
    if run_name is None:
        run_name = out_dir.name
    elif group:  # all cells of a sweep have the same `run_name`
        run_name = f"{run_name}-{out_dir.name}"
    name = state.get("run_name") or run_name
    # The overrides that turn the default run into this one.
    differences = minimal_overrides.diff_values(values, get_default_values())
    overrides = [
        override_syntax.quote_override(key, value)
        for key, (value, _) in differences.items()
        if key.split(".")[0] not in UNTRACKED_GROUPS
    ]
    trackers.start_tracking(spec.tracker, trackers.Run(out_dir, name, group, logged, overrides, state.get("id"), step))


def end_run_tracker(spec: RunSpec, out_dir: Path, record: dict[str, Any]) -> None:
    """Logs the outcome of the run; a tracker that cannot be reached any more costs a warning."""
    if trackers.is_paused(out_dir):  # by the process that trained
        try:
            start_run_tracker(spec, out_dir, int((record.get("training") or {}).get("steps", 0)))
        except PeftrunError as error:
            console.print_warning(str(error.lines[0]))
    trackers.end_tracking(out_dir, record)


def describe_tracker(spec: RunSpec, out_dir: Path) -> list[tuple[str, str]]:
    """A row of the summary table that says where the run is logged; empty without a tracker."""
    tracker: Any = spec.tracker
    if tracker.name == "none":
        return []
    if getattr(tracker, "mode", None) == "online":
        where = f"project {tracker.project} at Weights & Biases"
    else:
        where = getattr(tracker, "uri", None) or console.shorten_path(
            Path(tracker.folder) if tracker.folder else out_dir / EVENTS_DIR
        )
    return [("tracker", f"{tracker.name}: {where} (docs/trackers.md: how to view it)")]


def copy_tracker_state(run: Path, out_dir: Path) -> None:
    """Copies the tracker's state of the run that this one continues, so that it continues in the tracker too."""
    if not (run / trackers.STATE).is_file():
        return
    state = atomic_files.read_json(run / trackers.STATE)
    atomic_files.write_json(out_dir / trackers.STATE, {key: value for key, value in state.items() if key != "paused"})
    if state.get("name") == "tensorboard" and (run / EVENTS_DIR).is_dir():
        shutil.copytree(run / EVENTS_DIR, out_dir / EVENTS_DIR)


def take_back(out_dir: Path) -> None:
    """Removes what `copy_tracker_state` has copied, if the tracker of this run has not started."""
    if not trackers.live(out_dir):
        (out_dir / trackers.STATE).unlink(missing_ok=True)
        shutil.rmtree(out_dir / EVENTS_DIR, ignore_errors=True)
