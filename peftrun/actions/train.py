"""Train on the task: evaluate, fit, evaluate again, save."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import attach, save
from peftrun.artifacts import classifier_head
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
from peftrun.training import disk_check, distributed, fit, full_model
from peftrun.training import session as jobs
from peftrun.training.session import TrainingSession


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter, or with lora=none the full model."""
    assert isinstance(spec.action, TrainAction)
    job = jobs.prepare_session(spec, out_dir)
    before = jobs.evaluate(job, job.base.model, "before") if spec.action.evaluate_before else {}
    train = _train_full_model if isinstance(spec.lora, NoAdapter) else _train_adapter
    result = train(job, before)
    result.summary += lifecycle.describe_tracker(spec, out_dir)
    return result


def _train_adapter(job: TrainingSession, before: dict[str, float]) -> RunResult:
    adapted = attach.attach_adapter(job.base, job.spec.lora, job.spec.seed, jobs.build_init_data(job))
    trainable, total = attach.count_parameters(adapted)
    if distributed.is_main_process():  # before hours of training, not after
        disk_check.check_disk_space(job, adapted)
    console.print_info(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    with save.keep_untrained(adapted, job.spec.lora, job.out_dir, distributed.is_main_process()) as initial:
        fitted = jobs.fit(job, adapted, jobs.build_hooks(job, adapted))
        adapted = _gather_adapted_model(job, adapted)
        if not distributed.is_main_process():  # the main process evaluates, saves and writes the record
            return RunResult(job.out_dir)
        after = jobs.evaluate(job, adapted, "after")
        derived_from = tasks.describe_training_data(job.spec.task, job.rows)
        save.save(adapted, job.base, job.out_dir / ADAPTER, untrained=set(), initial=initial, derived_from=derived_from)
    return jobs.add_artifacts(job, jobs.build_result(job, fitted, before, after, (trainable, total)))


def _gather_adapted_model(job: TrainingSession, net: Any) -> Any:
    """The PEFT model, unsharded. FSDP and DeepSpeed leave shards in each process, so the main process rebuilds the model."""
    if job.place.strategy not in ("fsdp", "deepspeed"):
        return net
    trained_tensors = distributed.gather_trained(net)
    if not distributed.is_main_process():
        return net
    job.base = base_cache.load_cached_base(
        job.spec.model, job.place, jobs.choose_dtype(job.spec), classifier_head.get_task_head(job.spec.task)
    )
    return distributed.load_trained(
        attach.attach_adapter(job.base, job.spec.lora, job.spec.seed, jobs.build_init_data(job)), trained_tensors
    )


def _train_full_model(job: TrainingSession, before: dict[str, float]) -> RunResult:
    if job.base.held:
        raise ConfigError(f"lora=none: {job.base.held} weights cannot be trained; type lora=lora")
    net = job.base.model.requires_grad_(True)
    if distributed.is_main_process():
        disk_check.check_disk_space(job, net)
    # Checked before the first step: after training it would be too late to learn that the model cannot be saved.
    fitted = jobs.fit(job, net, fit.MethodHooks(begin=lambda: full_model.check_savable(job, net)))
    if not distributed.is_main_process():
        return RunResult(job.out_dir)
    after = jobs.evaluate(job, net, "after")
    target = full_model.save(job, net)
    result = jobs.build_result(job, fitted, before, after, attach.count_parameters(net))
    result.artifacts = [target]
    result.summary.append(("model", f"{format_bytes(atomic_files.measure_size(target))}: {shorten_path(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={shorten_path(target)}"]
    return result
