"""Measure the task on held-out rows: the base alone, or with an adapter."""

from pathlib import Path

from peftrun import console, device, heads, model, tasks
from peftrun.adapter import load
from peftrun.result import RunResult
from peftrun.schema import RunSpec


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The task's metrics for the base, or for the active adapter on it."""
    place = device.resolve(spec.device)
    console.say(place.note)
    base = model.load_base(spec.model, place, head=heads.wanted(spec.task, spec.adapter, spec.active))
    rows = tasks.of_kind(spec.task.kind).load_rows(spec.task, base.tokenizer)
    facts = {"base": base.describe(), "device": place.note, "data": rows.describe()}
    net, who = base.model, f"{base.name} alone"
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
        who = f"adapter {net.active_adapter} on {base.name}"
    found = tasks.of_kind(spec.task.kind).evaluate(
        net, base.tokenizer, rows.held_out, spec.trainer.per_device_eval_batch_size
    )
    summary = [("measured", who), ("held out", f"{len(rows.held_out)} rows")]
    summary += [(name, f"{value:.4f}") for name, value in found.items()]
    return RunResult(out_dir, facts, found, summary=summary, objective=found["loss"])
