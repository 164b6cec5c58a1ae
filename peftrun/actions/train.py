"""Learn the task: evaluate, fit, evaluate again, save."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from peftrun import artifacts, console, device, model
from peftrun.adapter import attach, save
from peftrun.console import figures, megabytes, short
from peftrun.result import RunResult
from peftrun.schema import LoraSpec, RunSpec, TrainAction
from peftrun.tasks import causal_lm
from peftrun.training import checkpoints, sft


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Trains and saves an adapter (or, with lora=none, a whole model)."""
    assert isinstance(spec.action, TrainAction)
    checkpoint = checkpoints.adopt(spec, spec.action.resume, out_dir) if spec.action.resume else None
    set_seed(spec.seed)
    place = device.resolve(spec.device)
    console.say(place.note)
    base = model.load_base(spec.model, place, _dtype(spec))
    rows = causal_lm.load_rows(spec.task, base.tokenizer)
    console.say(f"data: {len(rows.train)} training rows, {len(rows.held_out)} held out")
    timings: dict[str, float] = {}
    before = _evaluate(base.model, base, rows, spec, timings, "before") if spec.action.evaluate_before else {}
    if not isinstance(spec.lora, LoraSpec):
        return _train_whole(spec, base, rows, place, before, timings, out_dir, checkpoint)
    adapted = attach.attach(base, spec.lora, spec.seed)
    trainable, total = attach.trainable(adapted)
    console.say(f"training {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    with save.save_initial(adapted) as initial:
        fitted = _fit(adapted, base, rows, spec, place, out_dir, checkpoint)
        after = _evaluate(adapted, base, rows, spec, timings, "after")
        target = out_dir / artifacts.ADAPTER
        kept = Path(initial) if attach.changes_base(spec.lora) else None
        save.save(adapted, base, target, fresh=set(), initial=kept)
    sizes = (artifacts.size_of(target), base.size())
    result = _result(out_dir, base, place, rows, fitted, before, after, timings, (trainable, total))
    result.artifacts = [target]
    result.summary += [
        ("adapter", f"{megabytes(sizes[0])}, {sizes[0] / sizes[1]:.2%} of the base's {megabytes(sizes[1])}: {short(target)}"),
        ("record", f"{short(out_dir / artifacts.RECORD)}"),
    ]
    run_dir = short(out_dir)
    result.next_commands = [
        f"peftrun action=reload adapter={run_dir}",
        f"peftrun action=generate adapter={run_dir} action.prompt='…'",
        f"peftrun action=merge adapter={run_dir}",
    ]
    return result


def _dtype(spec: RunSpec) -> torch.dtype | None:
    """Full fine-tuning updates the weights themselves, which bfloat16 would round away: float32 unless asked otherwise."""
    if isinstance(spec.lora, LoraSpec) or spec.device.dtype != "auto":
        return None
    console.say("lora=none: every weight is trained, in float32 (device.dtype=bfloat16 to choose otherwise)")
    return torch.float32


def _evaluate(net: Any, base: Any, rows: Any, spec: RunSpec, timings: dict[str, float], when: str) -> dict[str, float]:
    started = time.perf_counter()
    found = causal_lm.evaluate(net, base.tokenizer, rows.held_out, spec.trainer.per_device_eval_batch_size)
    timings[f"evaluate_{when}_seconds"] = round(time.perf_counter() - started, 2)
    console.say(f"held-out {when}: {figures(found)}")
    return found


def _fit(net: Any, base: Any, rows: Any, spec: RunSpec, place: Any, out_dir: Path, checkpoint: Path | None) -> sft.Fitted:
    return sft.fit(
        net, base.tokenizer, rows.for_training(), spec.trainer, place,
        seed=spec.seed, max_length=spec.task.max_length, out_dir=out_dir, checkpoint=checkpoint,
    )  # fmt: skip


def _train_whole(spec: RunSpec, base: Any, rows: Any, place: Any, before: Any, timings: Any, out_dir: Path, checkpoint: Any) -> RunResult:
    base.model.requires_grad_(True)
    fitted = _fit(base.model, base, rows, spec, place, out_dir, checkpoint)
    after = _evaluate(base.model, base, rows, spec, timings, "after")
    target = out_dir / artifacts.MODEL
    with artifacts.new_folder(target) as folder:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    result = _result(out_dir, base, place, rows, fitted, before, after, timings, attach.trainable(base.model))
    result.artifacts = [target]
    result.summary.append(("model", f"{megabytes(artifacts.size_of(target))}: {short(target)}"))
    result.next_commands = [f"peftrun action=evaluate model=pretrained model.name_or_path={short(target)}"]
    return result


def _result(out_dir: Path, base: Any, place: Any, rows: Any, fitted: sft.Fitted, before: dict[str, float],
            after: dict[str, float], timings: dict[str, float], counts: tuple[int, int]) -> RunResult:  # fmt: skip
    facts = {
        "base": base.describe(),
        "device": place.note,
        "data": rows.describe(),
        "training": fitted.as_dict(),
        "timings": timings | {"train_seconds": round(fitted.seconds, 2)},
        "trainable_parameters": counts[0],
        "parameters": counts[1],
    }
    summary = [
        ("base", f"{base.name} ({base.fingerprint.short()})"),
        ("trainable", f"{counts[0]:,} of {counts[1]:,} parameters ({counts[0] / counts[1]:.2%})"),
        ("training", f"{fitted.steps} steps in {fitted.seconds:.0f} s, mean loss {fitted.train_loss:.4f}"),
        *((name, f"{before[name]:.4f} → {value:.4f}" if before else f"{value:.4f}") for name, value in after.items()),
    ]
    return RunResult(out_dir, facts, {"before": before, "after": after}, summary=summary, objective=after["loss"])

