"""Checkpoints: which run to resume, from which complete checkpoint, and the copy of it in the new run's folder."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import records, remote_stores
from peftrun.artifacts.run_layout import CHECKPOINTS, COMPLETE_MARKER, CONFIG, METRICS, RECORD, TRAINER_STATE
from peftrun.compat.transformers import TrainerStep, get_trainer_step, replace_trainer_step
from peftrun.config import usage
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.data import input_digests
from peftrun.errors import ArtifactError, ConfigError
from peftrun.io import atomic_files
from peftrun.trackers import lifecycle
from peftrun.training import process_count

CHANGEABLE_KEYS = (  # keys that may differ from the run to resume
    "action.resume", "action.num_samples", "action.upload_to",
    "trainer.push_to_hub", "trainer.hub_model_id", "trainer.hub_strategy", "trainer.hub_private_repo",
)  # fmt: skip


def mark_complete(checkpoint: Path, digests: dict[str, str]) -> None:
    """Marks a checkpoint as complete once all its files are on disk. Args: digests: hashes of what the training is made from."""
    atomic_files.flush_tree(checkpoint)
    atomic_files.write_json(checkpoint / COMPLETE_MARKER, digests)


def find_changed_inputs(checkpoint: Path, digests: dict[str, str]) -> list[str]:
    """Inputs that differ from those of the checkpoint."""
    marker = checkpoint / COMPLETE_MARKER
    # Early versions of peftrun wrote an empty marker: there is nothing to compare with.
    return input_digests.list_changes(atomic_files.read_json(marker), digests) if marker.stat().st_size else []


def check_inputs(checkpoint: Path, digests: dict[str, str], resume: str) -> None:
    """Raises: ConfigError: the training would be resumed with other rows, or on another base model."""
    changed = find_changed_inputs(checkpoint, digests)
    if changed:
        raise ConfigError(
            f"action.resume={resume}: since the run began, these have changed: {', '.join(changed)}; "
            "restore them, or leave action.resume out to train anew"
        )


def find_last_complete(run: Path) -> Path | None:
    """The newest complete checkpoint of a run; those left incomplete by a killed process are ignored."""
    complete = [path.parent for path in (run / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(complete, key=get_step, default=None)


def get_step(checkpoint: Path) -> int:
    """Optimizer steps done when the checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def stop_where_ended(trainer: Any) -> None:
    """Makes a Trainer take no further step if it is resumed from a checkpoint at which training had already ended.

    transformers starts the checkpoint's epoch, and checks whether to stop only after a step.
    """
    init_state = get_trainer_step(trainer, TrainerStep.START)

    def init_or_end(max_steps: int, epoch_steps: int, epochs: int, *args: Any) -> tuple[int, int]:
        start: tuple[int, int] = init_state(max_steps, epoch_steps, epochs, *args)
        # It ended by its number of steps, or by early stopping.
        control = trainer.state.stateful_callbacks.get("TrainerControl", {})
        stopped_early = control.get("args", {}).get("should_training_stop", False)
        return (epochs, 0) if trainer.state.global_step >= max_steps or stopped_early else start

    replace_trainer_step(trainer, TrainerStep.START, init_or_end)


def copy_checkpoint(spec: RunSpec, resume: str, out_dir: Path) -> Path | None:
    """Copies the checkpoint and the metrics of the run to resume into this run's folder.

    Args: resume: a run folder, or `auto`.
    Returns: the copied checkpoint, or None if the run has no complete one (then training starts from the first step).
    Raises: ConfigError: there is no such run, it is complete, its config differs (each differing key is named), a file that
        it is made from has changed, or its checkpoint cannot be copied; `out_dir` is then left without any part of it.
    """
    run = _choose_run(spec, resume, out_dir)
    checkpoint = find_last_complete(run)
    _report_incomplete(run, checkpoint)
    if checkpoint is None:
        console.print_info(f"{run} has no complete checkpoint yet; starting from the first step")
        return None
    # Files are compared here, before gigabytes are copied and the base model is loaded; the rows once they are loaded.
    check_inputs(checkpoint, input_digests.compute_digests(spec), resume)
    best = _find_best(checkpoint, resume) if spec.trainer.load_best_model_at_end else None
    for line in process_count.describe_change(*_flatten_configs(spec, run, report_changes=False)):
        console.print_info(line)
    console.print_info(f"continuing {run if resume == 'auto' else resume} after step {get_step(checkpoint)}")
    try:
        with remove_copies_on_error(out_dir):
            if best and best != checkpoint:
                _copy_to_run(best, out_dir)
            target = _copy_to_run(checkpoint, out_dir, best)
            for row in atomic_files.read_json_lines(run / METRICS):
                if row["step"] <= get_step(checkpoint):
                    atomic_files.append_json_line(out_dir / METRICS, row)
            lifecycle.copy_tracker_state(run, out_dir)
            return target
    except (ArtifactError, OSError) as error:
        raise ConfigError(
            f"action.resume={resume}: cannot be copied into {out_dir} ({' '.join(str(error).split())[:300]}); "
            "free space there, or type hydra.run.dir=FOLDER on another disk"
        ) from error


@contextmanager
def remove_copies_on_error(out_dir: Path) -> Iterator[None]:
    """Removes what was copied from the resumed run if the training is refused inside, so that the folder can be removed too.

    An interrupt removes nothing: `action.resume=auto` may resume from the copy.
    """
    try:
        yield
    except Exception:
        shutil.rmtree(out_dir / CHECKPOINTS, ignore_errors=True)
        (out_dir / METRICS).unlink(missing_ok=True)
        lifecycle.take_back(out_dir)
        raise


def _report_incomplete(run: Path, chosen: Path | None) -> None:
    """Names the incomplete checkpoints that are newer than the chosen one: left by a killed process, or by a partial copy."""
    checkpoints = [path for path in (run / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    incomplete = [
        path
        for path in checkpoints
        if not (path / COMPLETE_MARKER).is_file() and (chosen is None or get_step(path) > get_step(chosen))
    ]
    if incomplete:
        names = ", ".join(path.name for path in sorted(incomplete, key=get_step))
        console.print_info(f"{run}: incomplete, and ignored: {names}")


def _find_best(checkpoint: Path, resume: str) -> Path | None:
    """The run's best checkpoint so far, in the same folder as this one; None: there was no validation yet."""
    named = atomic_files.read_json(checkpoint / TRAINER_STATE).get("best_model_checkpoint")
    if named is None:
        return None
    best = checkpoint.with_name(Path(named).name)
    if not (best / COMPLETE_MARKER).is_file():
        raise ConfigError(
            f"action.resume={resume}: {best}, the best checkpoint of this run, is missing, which trainer.load_best_model_at_end=true "
            "would end with; restore it, or leave action.resume out"
        )
    return best


def _copy_to_run(checkpoint: Path, out_dir: Path, best: Path | None = None) -> Path:
    """The checkpoint copied into another run's folder. Args: best: the best checkpoint, whose path in it becomes that of its copy."""
    target = out_dir / CHECKPOINTS / checkpoint.name
    with atomic_files.create_folder(target) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        if best:
            state = atomic_files.read_json(folder / TRAINER_STATE)
            state["best_model_checkpoint"] = str(target.with_name(best.name))
            atomic_files.write_json(folder / TRAINER_STATE, state)
    return target


def _choose_run(spec: RunSpec, resume: str, out_dir: Path) -> Path:
    """The named run, or for `auto` the newest unfinished one with the same config."""
    if resume != "auto":
        run = remote_stores.fetch_run(resume) or Path(resume).expanduser()
        if not _is_unfinished(run):
            raise ConfigError(f"action.resume={resume}: this run is complete; omit action.resume to train anew")
        differences = _compare_configs(spec, run, report_changes=True)
        if differences:
            raise ConfigError(*(f"{line}; a run is resumed with its own config" for line in differences))
        return run
    runs = sorted((path.parent for path in out_dir.parent.glob(f"*/{RECORD}")), reverse=True)  # newest first
    for run in runs:
        if (
            run != out_dir
            and (run / CONFIG).is_file()
            and _is_unfinished(run)
            and not _compare_configs(spec, run, report_changes=False)
        ):
            return run
    raise ConfigError(
        f"action.resume=auto: {out_dir.parent} holds no unfinished run with this config; "
        "give the same overrides as the run to resume, or name a run in another folder: action.resume=RUN_FOLDER"
    )


def _is_unfinished(run: Path) -> bool:
    try:
        return records.read_record(run).get("status") != "completed"
    except ArtifactError:
        return False


def _compare_configs(spec: RunSpec, run: Path, report_changes: bool) -> list[str]:
    """`KEY=VALUE: the run has VALUE` for each key that differs and may not. Args: report_changes: whether upgrades of an old config are reported."""
    now, then = _flatten_configs(spec, run, report_changes)
    changeable = (*CHANGEABLE_KEYS, *process_count.list_changeable_keys(now, then))
    keys = sorted(key for key in {*now, *then} if key not in changeable and key.split(".")[0] != "tracker")
    different = [f"{key}={now.get(key)}: the run has {then.get(key)}" for key in keys if now.get(key) != then.get(key)]
    return [*different, *process_count.find_other_batch(now, then)]


def _flatten_configs(spec: RunSpec, run: Path, report_changes: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Key → value of this run's config, and of that of the run to resume."""
    values = dataclasses.asdict(usage.strip_tracking(spec))
    return config.flatten_keys(values), config.flatten_keys(config.read_run(run / CONFIG, report_changes))
