"""Measure the task on held-out rows: the base alone, or with an adapter."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import load, mixed_batch
from peftrun.artifacts import adapter_folder, classifier_head
from peftrun.artifacts.prompts_file import BASE
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError
from peftrun.formatting import many
from peftrun.io import atomic_files
from peftrun.models import base_cache, placement
from peftrun.models.base import Base
from peftrun.result import RunResult
from peftrun.tasks import causal_lm, lm_eval

ADAPTER = "adapter"  # the side of the only one
SAMPLES = "samples.jsonl"  # in the run folder: what lm-evaluation-harness asked and was answered


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The task's metrics for the base, or for the active adapter on it."""
    if spec.task.lm_eval is not None:
        return _by_harness(spec, out_dir)
    tasks.look(spec.task)
    base, facts = _base(spec)
    rows = tasks.load(spec.task, base, adapter_folder.virtual_tokens(spec.adapter))
    tasks.say_if_other(spec.task, rows, spec.adapter)
    facts["data"] = rows.describe()
    net, who = base.model, f"{base.name} alone"
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
        who = f"adapter {net.active_adapter} on {base.name}"
    console.doing(f"measuring {len(rows.held_out)} held-out rows")
    kind, size = tasks.of_kind(spec.task.kind), spec.trainer.per_device_eval_batch_size
    summary = [("measured", who), ("held out", many(len(rows.held_out), "row"))]
    if spec.task.data.adapter_column:
        found, per_adapter = _by_rows(net, base.tokenizer, rows.held_out, size, spec.adapter)
        facts["per_adapter"] = per_adapter
        summary[0] = ("measured", f"each row's own adapter on {base.name}")
        summary += [
            (f"{name}: {key}", f"{value:.4f}") for name, own in per_adapter.items() for key, value in own.items()
        ]
    else:
        found = kind.evaluate(net, base.tokenizer, rows.held_out, size, spec.task)
    summary += [(name, f"{value:.4f}") for name, value in found.items()]
    return RunResult(out_dir, facts, found, summary=summary, objective=found["loss"])


def _base(spec: RunSpec) -> tuple[Base, dict[str, Any]]:
    """The base on its device, and what the record says of both."""
    place = placement.resolve(spec)
    console.say(place.note)
    base = base_cache.load_base(spec.model, place, head=classifier_head.wanted(spec.task, spec.adapter, spec.active))
    return base, {"base": base.describe(), "device": place.note}


def _by_rows(
    net: Any, tokenizer: Any, rows: list[causal_lm.Row], batch_size: int, adapters: dict[str, str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics over all rows, each answered by the adapter it names in mixed batches; and those of each adapter's rows."""
    names = [row.adapter for row in rows]
    unknown = sorted({str(name) for name in names} - {*adapters, BASE})
    if unknown:
        raise DataError(
            f"task.data.adapter_column: a row names {unknown[0]}, which is not given; given: {', '.join([*adapters, BASE])}"
        )
    groups = mixed_batch.groups(net, names)
    if len(groups) > 1:
        console.say(
            f"rows are measured adapter by adapter: {mixed_batch.cannot(net, names)}, which cannot share a batch"
        )
    scores = [
        one for group in groups for one in causal_lm.scored(net, tokenizer, [rows[row] for row in group], batch_size)
    ]
    own = {str(name): [one for one in scores if one.row.adapter == name] for name in dict.fromkeys(names)}
    return causal_lm.metrics(scores), {
        name: {**causal_lm.metrics(part), "rows": len(part)} for name, part in own.items()
    }


def _by_harness(spec: RunSpec, out_dir: Path) -> RunResult:
    """Tasks of lm-evaluation-harness on the base, and with each adapter on it (`active`: with that one), in one process."""
    assert spec.task.lm_eval is not None
    harness = lm_eval.Harness(spec.task.lm_eval, spec.trainer.per_device_eval_batch_size, spec.seed)
    base, told = _base(spec)
    summary, sides = [("base", base.name)], {}
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        told["adapters"] = [proof.as_dict() for proof in proofs]
        names = [spec.active] if spec.active else list(spec.adapter)
        summary.append(("adapter" if len(names) == 1 else "adapters", ", ".join(names)))
        with net.disable_adapter():
            sides["base"] = harness.measure(net, base.tokenizer)
        for name in names:
            net.set_adapter(name)
            sides[name if len(names) > 1 else ADAPTER] = harness.measure(net, base.tokenizer)
    else:
        sides["base"] = harness.measure(base.model, base.tokenizer)
    result = _told(out_dir, told, summary, sides)
    if spec.task.lm_eval.log_samples:
        atomic_files.write_text(out_dir / SAMPLES, lm_eval.as_lines(sides))
        result.summary.append(("samples", console.short(out_dir / SAMPLES)))
    return result


def _told(out_dir: Path, told: dict[str, Any], summary: list[tuple[str, str]], sides: dict[str, Any]) -> RunResult:
    found = {side: lm_eval.figures(one) for side, one in sides.items()}
    changes = {side: lm_eval.differences(sides["base"], one) for side, one in sides.items() if side != BASE}
    summary += [("rows", lm_eval.counted(sides[BASE])), *_table(found, changes)]
    differences = {side: {name: one.as_dict() for name, one in each.items()} for side, each in changes.items()}
    told["lm_eval"] = {
        **lm_eval.facts(sides["base"]),
        "stderr": {side: {name: one.stderr for name, one in values.items()} for side, values in found.items()},
        "difference": differences.get(ADAPTER, {}) if len(sides) < 3 else differences,
    }
    metrics = {side: {name: one.value for name, one in values.items()} for side, values in found.items()}
    return RunResult(out_dir, told, metrics, summary=summary)


def _table(found: dict[str, Any], changes: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for each figure: the base's and the only adapter's; with several adapters one for each of them below the base's."""
    if len(changes) < 2:
        own = changes.get(ADAPTER, {})
        return [
            (name, " → ".join(str(one[name]) for one in found.values() if name in one) + _change(own, name))
            for name in found[BASE]
        ]
    return [
        (f"{side}: {name}", f"{found[side][name]}{_change(changes.get(side, {}), name)}")
        for name in found[BASE]
        for side in found
        if name in found[side]
    ]


def _change(changes: dict[str, Any], name: str) -> str:
    return f", {changes[name]}" if name in changes else ""
