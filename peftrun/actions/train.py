"""Train on the task: evaluate, fit, evaluate again, save."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import attach, save, stack
from peftrun.artifacts import classifier_head
from peftrun.artifacts.adapter_folder import STACK
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import RunSpec
from peftrun.console import shorten_path
from peftrun.errors import ConfigError
from peftrun.formatting import format_bytes
from peftrun.io import atomic_files
from peftrun.models import base_cache
from peftrun.result import RunResult
from peftrun.trackers import lifecycle
from peftrun.training import disk_check, distributed, fit, full_model, session_result, start
from peftrun.training import session as jobs
from peftrun.training.session import TrainingSession


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter, or with lora=none the full model."""
    assert isinstance(spec.action, TrainAction)
    job = jobs.prepare_session(spec, out_dir)
    train = _train_full_model if isinstance(spec.lora, NoAdapter) else _train_adapter
    result = train(job)
    result.summary += lifecycle.describe_tracker(spec, out_dir)
    return result


def _train_adapter(job: TrainingSession) -> RunResult:
    adapted, before = start.start_adapter(job)
    trainable, total = attach.count_parameters(adapted)
    if distributed.is_main_process():  # before hours of training, not after
        disk_check.check_disk_space(job, adapted)
    console.print_info(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    is_converted = job.parent is None and distributed.is_main_process()
    with save.keep_untrained(adapted, job.spec.lora, job.out_dir, is_converted) as initial:
        with start.use_reference(job, adapted):
            fitted = jobs.fit(job, adapted, jobs.build_hooks(job, adapted))
        adapted = _gather_model(job, adapted)
        if not distributed.is_main_process():  # the main process evaluates, saves and writes the record
            return RunResult(job.out_dir)
        with start.use_reference(job, adapted):
            after = jobs.evaluate(job, adapted, "after")
        stacked = _save_adapter(job, adapted, initial, fitted.steps)
    result = session_result.build_result(job, fitted, before, after, (trainable, total))
    result.facts |= stacked
    return session_result.add_artifacts(job, result)


def _save_adapter(job: TrainingSession, adapted: Any, initial: Path | None, steps: int) -> dict[str, Any]:
    """Saves what was trained; of a stack its sum, and returns facts on that for the record."""
    target = job.out_dir / ADAPTER
    origin = tasks.describe_training_data(job.spec.task, job.rows) | jobs.describe_parent(job)
    if job.parent and start.is_stacked(job):
        facts = stack.add_sum(job.base, adapted)
        stack.save_stacked(adapted, job.base, job.parent, target, origin)
        return {STACK: facts}
    names = [attach.ADAPTER_NAME]
    untrained = set(names) if start.is_untrained(job, steps) else set()
    save.save(adapted, job.base, target, untrained=untrained, names=names, initial=initial, derived_from=origin)
    return {}


def _gather_model(job: TrainingSession, net: Any) -> Any:
    """The trained model, unsharded. FSDP and DeepSpeed leave shards in each process, so the main process rebuilds the model."""
    if job.place.strategy not in ("fsdp", "deepspeed"):
        return net

    def build() -> Any:
        job.base = base_cache.load_cached_base(
            job.spec.model, job.place, jobs.choose_dtype(job.spec), classifier_head.get_task_head(job.spec.task)
        )
        return (
            job.base.model.requires_grad_(True) if isinstance(job.spec.lora, NoAdapter) else start.attach_adapter(job)
        )

    return distributed.rebuild_whole(net, build)


def _train_full_model(job: TrainingSession) -> RunResult:
    if job.base.held:
        raise ConfigError(f"lora=none: {job.base.held} weights cannot be trained; type lora=lora")
    before = start.evaluate_before(job, job.base.model)
    net = job.base.model.requires_grad_(True)
    if distributed.is_main_process():
        disk_check.check_disk_space(job, net)
    # Checked before the first step: after training it would be too late to learn that the model cannot be saved.
    if job.place.strategy == "fsdp":  # once it is sharded, no process could save it
        full_model.check_savable(job, net)
        fitted = jobs.fit(job, net)
    else:
        fitted = jobs.fit(job, net, fit.MethodHooks(begin=lambda: full_model.check_savable(job, net)))
    net = _gather_model(job, net)
    if not distributed.is_main_process():
        return RunResult(job.out_dir)
    after = jobs.evaluate(job, net, "after")
    target = full_model.save(job, net)
    result = session_result.build_result(job, fitted, before, after, attach.count_parameters(net))
    result.artifacts = [target]
    result.summary.append(("model", f"{format_bytes(atomic_files.measure_size(target))}: {shorten_path(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={shorten_path(target)}"]
    return result
