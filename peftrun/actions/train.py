"""Learn the task: evaluate, fit, evaluate again, save."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import attach, save
from peftrun.artifacts import classifier_head
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import TrainAction
from peftrun.config.schema.lora import NoAdapter
from peftrun.config.schema.run import RunSpec
from peftrun.console import megabytes, short
from peftrun.errors import ConfigError
from peftrun.io import atomic_files
from peftrun.models import base_cache
from peftrun.result import RunResult
from peftrun.trackers import lifecycle
from peftrun.training import disk_check, distributed, fit, full_model
from peftrun.training import session as jobs
from peftrun.training.session import Job


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter (or, with lora=none, a whole model)."""
    assert isinstance(spec.action, TrainAction)
    job = jobs.prepare(spec, out_dir)
    before = jobs.evaluate(job, job.base.model, "before") if spec.action.evaluate_before else {}
    steps = _train_whole if isinstance(spec.lora, NoAdapter) else _train_adapter
    result = steps(job, before)
    result.summary += lifecycle.rows(spec, out_dir)
    return result


def _train_adapter(job: Job, before: dict[str, float]) -> RunResult:
    adapted = attach.attach(job.base, job.spec.lora, job.spec.seed, jobs.start(job))
    trainable, total = attach.trainable(adapted)
    if distributed.is_main():
        disk_check.check_room(job, adapted)
    console.say(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    with save.initial_kept(adapted, job.spec.lora, job.out_dir, distributed.is_main()) as initial:
        fitted = jobs.fit(job, adapted, jobs.method(job, adapted))
        adapted = _whole(job, adapted)
        if not distributed.is_main():
            return RunResult(job.out_dir)
        after = jobs.evaluate(job, adapted, "after")
        learned = tasks.learned_from(job.spec.task, job.rows)
        save.save(adapted, job.base, job.out_dir / ADAPTER, fresh=set(), initial=initial, made_of=learned)
    return jobs.told(job, jobs.result(job, fitted, before, after, (trainable, total)))


def _whole(job: Job, net: Any) -> Any:
    """The adapted model on this process alone; one that was sharded is built anew around what it has learned."""
    if job.place.strategy not in ("fsdp", "deepspeed"):
        return net
    learned = distributed.gathered(net)
    if not distributed.is_main():
        return net
    job.base = base_cache.load_base(
        job.spec.model, job.place, jobs.dtype(job.spec), classifier_head.of_task(job.spec.task)
    )
    return distributed.filled(attach.attach(job.base, job.spec.lora, job.spec.seed, jobs.start(job)), learned)


def _train_whole(job: Job, before: dict[str, float]) -> RunResult:
    if job.base.held:
        raise ConfigError(f"lora=none: {job.base.held} weights cannot be trained themselves; type lora=lora")
    net = job.base.model.requires_grad_(True)
    if distributed.is_main():
        disk_check.check_room(job, net)
    fitted = jobs.fit(job, net, fit.Method(begin=lambda: full_model.check_savable(job, net)))
    if not distributed.is_main():
        return RunResult(job.out_dir)
    after = jobs.evaluate(job, net, "after")
    target = full_model.save(job, net)
    result = jobs.result(job, fitted, before, after, attach.trainable(net))
    result.artifacts = [target]
    result.summary.append(("model", f"{megabytes(atomic_files.size_of(target))}: {short(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={short(target)}"]
    return result
