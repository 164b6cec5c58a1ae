"""Measure the task on held-out rows: the base alone, or with an adapter."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import load, mixed_batch
from peftrun.artifacts import adapter_folder, classifier_head
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.models import base_cache, placement
from peftrun.models.base import LoadedBase
from peftrun.result import RunResult
from peftrun.tasks import causal_lm, lm_eval

ADAPTER_SIDE = "adapter"  # the side of the only one
SAMPLES = "samples.jsonl"  # in the run folder: what lm-evaluation-harness asked and was answered


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The task's metrics for the base, or for the active adapter on it."""
    if spec.task.lm_eval is not None:
        return _run_lm_eval(spec, out_dir)
    tasks.check_data_columns(spec.task)
    base, facts = _load_base(spec)
    rows = tasks.load_task_rows(spec.task, base, adapter_folder.virtual_tokens(spec.adapter))
    tasks.warn_on_other_dataset(spec.task, rows, spec.adapter)
    facts["data"] = rows.describe()
    net, who = base.model, f"{base.name} alone"
    if spec.adapter:
        net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
        who = f"adapter {net.active_adapter} on {base.name}"
    console.set_activity(f"measuring {len(rows.held_out)} held-out rows")
    kind, size = tasks.import_task_module(spec.task.kind), spec.trainer.per_device_eval_batch_size
    summary = [("measured", who), ("held out", format_count(len(rows.held_out), "row"))]
    if spec.task.data.adapter_column:
        found, per_adapter = _evaluate_per_adapter(net, base.tokenizer, rows.held_out, size, spec.adapter)
        facts["per_adapter"] = per_adapter
        summary[0] = ("measured", f"each row's own adapter on {base.name}")
        summary += [
            (f"{name}: {key}", f"{value:.4f}") for name, own in per_adapter.items() for key, value in own.items()
        ]
    else:
        found = kind.evaluate(net, base.tokenizer, rows.held_out, size, spec.task)
    summary += [(name, f"{value:.4f}") for name, value in found.items()]
    return RunResult(out_dir, facts, found, summary=summary, objective=found["loss"])


def _load_base(spec: RunSpec) -> tuple[LoadedBase, dict[str, Any]]:
    """The base on its device, and what the record says of both."""
    place = placement.resolve_run_device(spec)
    console.print_info(place.note)
    base = base_cache.load_cached_base(
        spec.model, place, head=classifier_head.select_head(spec.task, spec.adapter, spec.active)
    )
    return base, {"base": base.describe(), "device": place.note}


def _evaluate_per_adapter(
    net: Any, tokenizer: Any, rows: list[causal_lm.Row], batch_size: int, adapters: dict[str, str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics over all rows, each answered by the adapter it names in mixed batches; and those of each adapter's rows."""
    names = [row.adapter for row in rows]
    unknown = sorted({str(name) for name in names} - {*adapters, BASE_ADAPTER_NAME})
    if unknown:
        raise DataError(
            f"task.data.adapter_column: a row names {unknown[0]}, which is not given; given: {', '.join([*adapters, BASE_ADAPTER_NAME])}"
        )
    groups = mixed_batch.group_rows(net, names)
    if len(groups) > 1:
        console.print_info(
            f"rows are measured adapter by adapter: {mixed_batch.why_not_mixable(net, names)}, which cannot share a batch"
        )
    scores = [
        one
        for group in groups
        for one in causal_lm.score_rows(net, tokenizer, [rows[row] for row in group], batch_size)
    ]
    own = {str(name): [one for one in scores if one.row.adapter == name] for name in dict.fromkeys(names)}
    return causal_lm.compute_metrics(scores), {
        name: {**causal_lm.compute_metrics(part), "rows": len(part)} for name, part in own.items()
    }


def _run_lm_eval(spec: RunSpec, out_dir: Path) -> RunResult:
    """Tasks of lm-evaluation-harness on the base, and with each adapter on it (`active`: with that one), in one process."""
    assert spec.task.lm_eval is not None
    harness = lm_eval.LmEvalHarness(spec.task.lm_eval, spec.trainer.per_device_eval_batch_size, spec.seed)
    base, told = _load_base(spec)
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
            sides[name if len(names) > 1 else ADAPTER_SIDE] = harness.measure(net, base.tokenizer)
    else:
        sides["base"] = harness.measure(base.model, base.tokenizer)
    result = _build_lm_eval_result(out_dir, told, summary, sides)
    if spec.task.lm_eval.log_samples:
        atomic_files.write_text(out_dir / SAMPLES, lm_eval.format_samples(sides))
        result.summary.append(("samples", console.shorten_path(out_dir / SAMPLES)))
    return result


def _build_lm_eval_result(
    out_dir: Path, told: dict[str, Any], summary: list[tuple[str, str]], sides: dict[str, Any]
) -> RunResult:
    found = {side: lm_eval.read_metrics(one) for side, one in sides.items()}
    changes = {
        side: lm_eval.compare_metrics(sides["base"], one) for side, one in sides.items() if side != BASE_ADAPTER_NAME
    }
    summary += [("rows", lm_eval.format_row_counts(sides[BASE_ADAPTER_NAME])), *_format_metrics(found, changes)]
    differences = {side: {name: one.as_dict() for name, one in each.items()} for side, each in changes.items()}
    told["lm_eval"] = {
        **lm_eval.describe_results(sides["base"]),
        "stderr": {side: {name: one.stderr for name, one in values.items()} for side, values in found.items()},
        "difference": differences.get(ADAPTER_SIDE, {}) if len(sides) < 3 else differences,
    }
    metrics = {side: {name: one.value for name, one in values.items()} for side, values in found.items()}
    return RunResult(out_dir, told, metrics, summary=summary)


def _format_metrics(found: dict[str, Any], changes: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for each figure: the base's and the only adapter's; with several adapters one for each of them below the base's."""
    if len(changes) < 2:
        own = changes.get(ADAPTER_SIDE, {})
        return [
            (name, " → ".join(str(one[name]) for one in found.values() if name in one) + _format_change(own, name))
            for name in found[BASE_ADAPTER_NAME]
        ]
    return [
        (f"{side}: {name}", f"{found[side][name]}{_format_change(changes.get(side, {}), name)}")
        for name in found[BASE_ADAPTER_NAME]
        for side in found
        if name in found[side]
    ]


def _format_change(changes: dict[str, Any], name: str) -> str:
    return f", {changes[name]}" if name in changes else ""
