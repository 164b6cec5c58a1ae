"""Learn the task: evaluate, fit, evaluate again, save."""

from pathlib import Path
from typing import Any

from peftrun import artifacts, console, heads, tasks, tracking, warm
from peftrun.action_specs import TrainAction
from peftrun.adapter import attach, save
from peftrun.console import megabytes, short
from peftrun.errors import ConfigError
from peftrun.methods import NoAdapter
from peftrun.result import RunResult
from peftrun.schema import RunSpec
from peftrun.training import disk, loop, ranks, whole_model
from peftrun.training import job as jobs
from peftrun.training.job import Job


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter (or, with lora=none, a whole model)."""
    assert isinstance(spec.action, TrainAction)
    job = jobs.prepare(spec, out_dir)
    before = jobs.evaluate(job, job.base.model, "before") if spec.action.evaluate_before else {}
    steps = _train_whole if isinstance(spec.lora, NoAdapter) else _train_adapter
    result = steps(job, before)
    result.summary += tracking.rows(spec, out_dir)
    return result


def _train_adapter(job: Job, before: dict[str, float]) -> RunResult:
    adapted = attach.attach(job.base, job.spec.lora, job.spec.seed, jobs.start(job))
    trainable, total = attach.trainable(adapted)
    if ranks.is_main():
        disk.check_room(job, adapted)
    console.say(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    with save.initial_kept(adapted, job.spec.lora, job.out_dir, ranks.is_main()) as initial:
        fitted = jobs.fit(job, adapted, jobs.method(job, adapted))
        adapted = _whole(job, adapted)
        if not ranks.is_main():
            return RunResult(job.out_dir)
        after = jobs.evaluate(job, adapted, "after")
        learned = tasks.learned_from(job.spec.task, job.rows)
        save.save(adapted, job.base, job.out_dir / artifacts.ADAPTER, fresh=set(), initial=initial, made_of=learned)
    return jobs.told(job, jobs.result(job, fitted, before, after, (trainable, total)))


def _whole(job: Job, net: Any) -> Any:
    """The adapted model on this process alone; one that was sharded is built anew around what it has learned."""
    if job.place.strategy not in ("fsdp", "deepspeed"):
        return net
    learned = ranks.gathered(net)
    if not ranks.is_main():
        return net
    job.base = warm.load_base(job.spec.model, job.place, jobs.dtype(job.spec), heads.of_task(job.spec.task))
    return ranks.filled(attach.attach(job.base, job.spec.lora, job.spec.seed, jobs.start(job)), learned)


def _train_whole(job: Job, before: dict[str, float]) -> RunResult:
    if job.base.held:
        raise ConfigError(f"lora=none: {job.base.held} weights cannot be trained themselves; type lora=lora")
    net = job.base.model.requires_grad_(True)
    if ranks.is_main():
        disk.check_room(job, net)
    fitted = jobs.fit(job, net, loop.Method(begin=lambda: whole_model.check_savable(job, net)))
    if not ranks.is_main():
        return RunResult(job.out_dir)
    after = jobs.evaluate(job, net, "after")
    target = whole_model.save(job, net)
    result = jobs.result(job, fitted, before, after, attach.trainable(net))
    result.artifacts = [target]
    result.summary.append(("model", f"{megabytes(artifacts.size_of(target))}: {short(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={short(target)}"]
    return result
