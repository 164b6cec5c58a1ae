"""Resumable state: which run to continue, and from which complete checkpoint."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts.run_layout import CHECKPOINTS, CONFIG, METRICS, RECORD
from peftrun.config import usage
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.data import input_digests
from peftrun.errors import ArtifactError, ConfigError
from peftrun.io import atomic_files
from peftrun.trackers import lifecycle

CHANGEABLE_KEYS = ("action.resume", "action.samples")  # what a run may be continued with otherwise
TRAINER_STATE = "trainer_state.json"
MODEL_CARD = "README.md"  # PEFT's empty model card, which names paths of this machine
COMPLETE_MARKER = "complete"  # a file that is written after everything else of a checkpoint


def mark_complete(checkpoint: Path, inputs: dict[str, str]) -> None:
    """Says that every file of a checkpoint is on disk, and none but those. Args: inputs: digests of what the training is made from."""
    (checkpoint / MODEL_CARD).unlink(missing_ok=True)
    atomic_files.flush_tree(checkpoint)
    atomic_files.write_json(checkpoint / COMPLETE_MARKER, inputs)


def find_changed_inputs(checkpoint: Path, inputs: dict[str, str]) -> list[str]:
    """What is another than when the checkpoint was written; nothing of one by an earlier peftrun, which does not tell."""
    marked = checkpoint / COMPLETE_MARKER
    return input_digests.list_changes(atomic_files.read_json(marked), inputs) if marked.stat().st_size else []


def check_inputs(checkpoint: Path, inputs: dict[str, str], asked: str) -> None:
    """Raises: ConfigError: training would go on with other rows, or on another base."""
    changed = find_changed_inputs(checkpoint, inputs)
    if changed:
        raise ConfigError(
            f"action.resume={asked}: since the run began, these have changed: {', '.join(changed)}; "
            "restore them, or leave action.resume out to train anew"
        )


def find_last_complete(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; torn ones, left by a killed process, are passed over."""
    found = [path.parent for path in (run / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(found, key=get_step, default=None)


def _report_incomplete(run: Path, chosen: Path | None) -> None:
    """Names the checkpoints later than the one that is gone on from, which a killed process, or a copy, has left in part."""
    found = [path for path in (run / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    torn = [
        path
        for path in found
        if not (path / COMPLETE_MARKER).is_file() and (chosen is None or get_step(path) > get_step(chosen))
    ]
    if torn:
        names = ", ".join(path.name for path in sorted(torn, key=get_step))
        console.print_info(f"{run}: not whole, and passed over: {names}")


def get_step(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def stop_where_ended(trainer: Any) -> None:
    """Has a Trainer learn nothing more from a checkpoint at which its training had ended.

    transformers begins the checkpoint's epoch and looks for the end after a step only.
    """
    restored = trainer._init_training_state

    def restore(max_steps: int, epoch_steps: int, epochs: int, *more: Any) -> tuple[int, int]:
        begun: tuple[int, int] = restored(max_steps, epoch_steps, epochs, *more)
        return (epochs, 0) if _has_ended(trainer.state, max_steps) else begun

    trainer._init_training_state = restore


def _has_ended(state: Any, max_steps: int) -> bool:
    """By its number of steps, or because early stopping had said so."""
    control = state.stateful_callbacks.get("TrainerControl", {})
    return state.global_step >= max_steps or control.get("args", {}).get("should_training_stop", False)


def copy_checkpoint(spec: RunSpec, asked: str, out_dir: Path) -> Path | None:
    """Copies the checkpoint and the metrics of the run to be continued into this run's folder.

    Args: asked: a run folder, or `auto`.
    Returns: the copied checkpoint, or None if the run had saved none yet (then training starts anew).
    Raises: ConfigError: there is no such run, it is complete, its config differs (each differing key named), a file it is made from
        has changed, or its checkpoint cannot be copied; nothing of it is then left in `out_dir`.
    """
    run = _find_unfinished(spec, out_dir) if asked == "auto" else _check_resumable(spec, Path(asked).expanduser())
    checkpoint = find_last_complete(run)
    _report_incomplete(run, checkpoint)
    if checkpoint is None:
        console.print_info(f"{run} has no complete checkpoint yet; starting from the first step")
        return None
    check_inputs(
        checkpoint, input_digests.compute_digests(spec), asked
    )  # before gigabytes are copied and a base is loaded; its rows follow then
    best = _find_best(checkpoint, asked) if spec.trainer.load_best_model_at_end else None
    console.print_info(f"continuing {run} after step {get_step(checkpoint)}")
    try:
        with taken_back(out_dir):
            return _copy_state(run, checkpoint, best, out_dir)
    except (ArtifactError, OSError) as error:
        raise ConfigError(
            f"action.resume={asked}: cannot be copied into {out_dir} ({' '.join(str(error).split())[:300]}); "
            "free space there, or type hydra.run.dir=FOLDER on another disk"
        ) from error


@contextmanager
def taken_back(out_dir: Path) -> Iterator[None]:
    """Takes away what was copied of the continued run where the training is refused inside: its folder then holds nothing, and goes too.

    What an interrupt finds stays, since `action.resume=auto` goes on from there.
    """
    try:
        yield
    except Exception:
        shutil.rmtree(out_dir / CHECKPOINTS, ignore_errors=True)
        (out_dir / METRICS).unlink(missing_ok=True)
        lifecycle.take_back(out_dir)
        raise


def _copy_state(run: Path, checkpoint: Path, best: Path | None, out_dir: Path) -> Path:
    """What training goes on from, in `out_dir`; the copied checkpoint."""
    if best and best != checkpoint:
        _copy_to_run(best, out_dir)
    target = _copy_to_run(checkpoint, out_dir, best)
    _copy_metrics(run, out_dir, get_step(checkpoint))
    lifecycle.copy_tracker_state(run, out_dir)
    return target


def _find_best(checkpoint: Path, asked: str) -> Path | None:
    """The checkpoint that was the best one so far, beside this one; None: nothing was measured yet."""
    named = atomic_files.read_json(checkpoint / TRAINER_STATE).get("best_model_checkpoint")
    if named is None:
        return None
    best = checkpoint.with_name(Path(named).name)
    if not (best / COMPLETE_MARKER).is_file():
        raise ConfigError(
            f"action.resume={asked}: {best}, the best checkpoint of this run, is gone, which trainer.load_best_model_at_end=true "
            "would end with; restore it, or leave action.resume out"
        )
    return best


def _copy_to_run(checkpoint: Path, out_dir: Path, best: Path | None = None) -> Path:
    """The checkpoint in another run's folder, which then stands alone. `best`: copied as well, and named in it."""
    target = out_dir / CHECKPOINTS / checkpoint.name
    with atomic_files.create_folder(target) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        if best:
            state = atomic_files.read_json(folder / TRAINER_STATE)
            atomic_files.write_json(
                folder / TRAINER_STATE, state | {"best_model_checkpoint": str(target.with_name(best.name))}
            )
    return target


def _copy_metrics(run: Path, out_dir: Path, last_step: int) -> None:
    for row in atomic_files.read_json_lines(run / METRICS):
        if row["step"] <= last_step:
            atomic_files.append_json_line(out_dir / METRICS, row)


def _find_unfinished(spec: RunSpec, out_dir: Path) -> Path:
    runs = sorted((path.parent for path in out_dir.parent.glob(f"*/{RECORD}")), reverse=True)
    for run in runs:
        if (
            run != out_dir
            and (run / CONFIG).is_file()
            and _is_unfinished(run)
            and not _compare_configs(spec, run, aloud=False)
        ):
            return run
    raise ConfigError(
        f"action.resume=auto: {out_dir.parent} holds no unfinished run with this config; "
        "give the same overrides as the run to continue, or, where it lies elsewhere, name it: action.resume=RUN_FOLDER"
    )


def _check_resumable(spec: RunSpec, run: Path) -> Path:
    if not _is_unfinished(run):
        raise ConfigError(f"action.resume={run}: this run is complete; omit action.resume to train anew")
    differences = _compare_configs(spec, run, aloud=True)
    if differences:
        raise ConfigError(*(f"{line}; a run is continued with its own config" for line in differences))
    return run


def _is_unfinished(run: Path) -> bool:
    try:
        return atomic_files.read_json(run / RECORD).get("status") != "completed"
    except ArtifactError:
        return False


def _compare_configs(spec: RunSpec, run: Path, aloud: bool) -> list[str]:
    mine = dataclasses.asdict(usage.strip_tracking(spec))
    now, then = (_select_comparable(one) for one in (mine, config.read_run(run / CONFIG, aloud)))
    keys = sorted({*now, *then})
    return [f"{key}={now.get(key)}: the run has {then.get(key)}" for key in keys if now.get(key) != then.get(key)]


def _select_comparable(values: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in config.flatten_keys(values).items() if key.split(".")[0] != "tracker"}
    return {key: value for key, value in told.items() if key not in CHANGEABLE_KEYS}
