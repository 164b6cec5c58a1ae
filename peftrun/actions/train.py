"""Learn the task: evaluate, fit, evaluate again, save."""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, set_seed

from peftrun import artifacts, console, device, heads, model, tasks
from peftrun.adapter import attach, nature, optimizers, save
from peftrun.console import figures, megabytes, short
from peftrun.device import Device
from peftrun.errors import ConfigError, DataError
from peftrun.methods import NoAdapter
from peftrun.model import Base
from peftrun.result import RunResult
from peftrun.schema import RunSpec, TrainAction
from peftrun.tasks import seq2seq
from peftrun.training import checkpoints, loop, ranks


@dataclass
class _Job:
    """What the steps of one training share."""

    spec: RunSpec
    out_dir: Path
    checkpoint: Path | None
    place: Device
    base: Base
    kind: ModuleType
    rows: Any
    timings: dict[str, float] = field(default_factory=dict)


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter (or, with lora=none, a whole model)."""
    job = _prepare(spec, out_dir)
    assert isinstance(spec.action, TrainAction)
    before = _evaluate(job, job.base.model, "before") if spec.action.evaluate_before else {}
    steps = _train_whole if isinstance(spec.lora, NoAdapter) else _train_adapter
    return steps(job, before)


def _prepare(spec: RunSpec, out_dir: Path) -> _Job:
    assert isinstance(spec.action, TrainAction)
    place = device.resolve(spec.device)
    ranks.meet(place.name)
    checkpoint = _checkpoint(spec, spec.action.resume, out_dir)
    set_seed(spec.seed)
    console.say(place.note)
    base = model.load_base(spec.model, place, _dtype(spec), heads.of_task(spec.task))
    kind = tasks.of_kind(spec.task.kind)
    rows = tasks.load(spec.task, base)
    _check_validation(spec.task.data.validation_rows, len(rows.train))
    console.say(f"data: {len(rows.train)} training rows, {len(rows.held_out)} held out")
    return _Job(spec, out_dir, checkpoint, place, base, kind, rows)


def _checkpoint(spec: RunSpec, asked: str | None, out_dir: Path) -> Path | None:
    if asked is None:
        return None
    with ranks.main_first():
        return checkpoints.adopt(spec, asked, out_dir) if ranks.is_main() else checkpoints.last_complete(out_dir)


def _check_validation(apart: int | None, rows: int) -> None:
    if apart is not None and apart >= rows:
        raise DataError(
            f"task.data.validation_rows={apart}: there are {rows} training rows to take them from; type task.data.validation_rows={rows // 5}"
        )


def _dtype(spec: RunSpec) -> torch.dtype | None:
    """Full fine-tuning updates the weights themselves, and bfloat16 rounds small updates away: float32 unless asked otherwise."""
    if not isinstance(spec.lora, NoAdapter) or spec.device.dtype != "auto":
        return None
    console.say("lora=none: every weight is trained, in float32 (device.dtype=bfloat16 to choose otherwise)")
    return torch.float32


def _train_adapter(job: _Job, before: dict[str, float]) -> RunResult:
    adapted = attach.attach(job.base, job.spec.lora, job.spec.seed, _start(job))
    trainable, total = attach.trainable(adapted)
    console.say(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    target = job.out_dir / artifacts.ADAPTER
    with save.initial_kept(adapted, job.spec.lora, job.out_dir, ranks.is_main()) as initial:
        fitted = _fit(job, adapted, _method(job, adapted))
        adapted = _whole(job, adapted)
        if not ranks.is_main():
            return RunResult(job.out_dir)
        after = _evaluate(job, adapted, "after")
        learned = {"learned": tasks.source_of(job.spec.task)}
        save.save(adapted, job.base, target, fresh=set(), initial=initial, made_of=learned)
    size, base_size, here = artifacts.size_of(target), job.base.size(), short(job.out_dir)
    result = _result(job, fitted, before, after, (trainable, total))
    result.artifacts = [target]
    result.summary.append(
        ("adapter", f"{megabytes(size)}, {size / base_size:.2%} of the base's {megabytes(base_size)}: {short(target)}")
    )
    result.next_commands = [
        f"peftrun action=reload adapter={here}",
        *([] if job.base.head else [f"peftrun action=generate adapter={here} action.prompt='…'"]),
        f"peftrun action=merge adapter={here}",
    ]
    return result


def _whole(job: _Job, net: Any) -> Any:
    """The adapted model on this process alone; one that was sharded is built anew around what it has learned."""
    if job.place.strategy not in ("fsdp", "deepspeed"):
        return net
    learned = ranks.gathered(net)
    if not ranks.is_main():
        return net
    job.base = model.load_base(job.spec.model, job.place, _dtype(job.spec), heads.of_task(job.spec.task))
    return ranks.filled(attach.attach(job.base, job.spec.lora, job.spec.seed, _start(job)), learned)


def _train_whole(job: _Job, before: dict[str, float]) -> RunResult:
    if job.base.held:
        raise ConfigError(f"lora=none: {job.base.held} weights cannot be trained themselves; type lora=lora")
    net = job.base.model.requires_grad_(True)
    fitted = _fit(job, net)
    if not ranks.is_main():
        return RunResult(job.out_dir)
    after = _evaluate(job, net, "after")
    target = job.out_dir / artifacts.MODEL
    with artifacts.new_folder(target) as folder:
        net.save_pretrained(folder)
        job.base.tokenizer.save_pretrained(folder)
    result = _result(job, fitted, before, after, attach.trainable(net))
    result.artifacts = [target]
    result.summary.append(("model", f"{megabytes(artifacts.size_of(target))}: {short(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={short(target)}"]
    return result


def _evaluate(job: _Job, net: Any, when: str) -> dict[str, float]:
    if not ranks.is_main():
        return {}
    started = time.perf_counter()
    batch_size, task = job.spec.trainer.per_device_eval_batch_size, job.spec.task
    found: dict[str, float] = job.kind.evaluate(net, job.base.tokenizer, job.rows.held_out, batch_size, task)
    job.timings[f"evaluate_{when}_seconds"] = round(time.perf_counter() - started, 2)
    console.say(f"held-out {when}: {figures(found)}")
    if not math.isfinite(found["loss"]):
        who = f" at {_first_without_loss(job, net)}" if when == "before" else ""
        raise DataError(
            f"the held-out loss {when} training is {found['loss']}{who}, so nothing was saved; "
            "lower trainer.learning_rate, or type device.dtype=float32"
        )
    return found


def _first_without_loss(job: _Job, net: Any) -> str:
    """Where the first held-out row comes from on which the loss is no finite number."""
    alone = dataclasses.replace(job.spec.task, metrics=None)
    each = ((row.where, job.kind.evaluate(net, job.base.tokenizer, [row], 1, alone)) for row in job.rows.held_out)
    return next((where for where, one in each if not math.isfinite(one["loss"])), "no row alone")


def _start(job: _Job) -> attach.Start:
    """What a method may ask of the training ahead; its rows only where it looks at them."""
    rows, trainer = job.rows.for_training()[job.spec.task.data.validation_rows or 0 :], job.spec.trainer
    steps = loop.steps(trainer, len(rows))
    if not attach.needs_rows(job.spec.lora):
        return attach.Start([], steps)
    chosen, size = rows[: getattr(job.spec.lora, "calibration_rows", 0)], trainer.per_device_train_batch_size
    collate = job.kind.collator(job.base.tokenizer) if job.base.head else DataCollatorForSeq2Seq(job.base.tokenizer)
    batches = [collate(chosen[begin : begin + size]) for begin in range(0, len(chosen), size)]
    place = job.base.model.device
    return attach.Start([{key: value.to(place) for key, value in batch.items()} for batch in batches], steps)


def _collator(job: _Job, net: Any) -> Any:
    """None: TRL's own for language models, whose loss passes by an output layer that is adapted."""
    if job.spec.task.kind == "seq2seq":
        return seq2seq.collator(job.base.tokenizer, job.base.model)
    if hasattr(job.kind, "collator"):
        return job.kind.collator(job.base.tokenizer)
    if job.spec.task.objective is not None or not nature.adapts_output(net):
        return None
    if job.spec.trainer.packing:
        raise ConfigError(
            "trainer.packing=true: cannot be used where the output layer is adapted; type trainer.packing=false"
        )
    return DataCollatorForSeq2Seq(job.base.tokenizer)


def _method(job: _Job, net: Any) -> loop.Method:
    lora, decay = job.spec.lora, job.spec.trainer.weight_decay
    return loop.Method(lambda made_by, given: optimizers.of(net, lora, made_by, given, decay), attach.each_step(net))


def _fit(job: _Job, net: Any, method: loop.Method = loop.PLAIN) -> loop.Fitted:
    rows, apart = job.rows.for_training(), job.spec.task.data.validation_rows or 0
    lesson = loop.Lesson(
        rows[apart:],
        [row.where for row in job.rows.train[apart:]],
        job.base.tokenizer,
        job.spec.seed,
        job.spec.task.max_length,
        _collator(job, net),
        job.spec.task.objective,
        rows[:apart],
    )
    fitted = loop.fit(net, lesson, job.spec.trainer, job.place, job.out_dir, checkpoint=job.checkpoint, method=method)
    job.timings["train_seconds"] = round(fitted.seconds, 2)
    return fitted


def _result(
    job: _Job, fitted: loop.Fitted, before: dict[str, float], after: dict[str, float], counts: tuple[int, int]
) -> RunResult:
    facts = {
        "base": job.base.describe(),
        "device": job.place.note,
        "data": job.rows.describe(),
        "resumed_from": str(job.checkpoint) if job.checkpoint else None,
        "training": fitted.as_dict(),
        "timings": job.timings,
        "trainable_parameters": counts[0],
        "parameters": counts[1],
    }
    summary = [
        ("base", f"{job.base.name} ({job.base.fingerprint.short()})"),
        ("trainable", f"{counts[0]:,} of {counts[1]:,} parameters ({counts[0] / counts[1]:.2%})"),
        ("training", f"{fitted.steps} steps in {fitted.seconds:.0f} s, mean loss {fitted.train_loss:.4f}"),
        *((name, f"{before[name]:.4f} → {value:.4f}" if before else f"{value:.4f}") for name, value in after.items()),
        ("record", short(job.out_dir / artifacts.RECORD)),
    ]
    metrics = {"before": before, "after": after}
    return RunResult(job.out_dir, facts, metrics, summary=summary, objective=after["loss"])
