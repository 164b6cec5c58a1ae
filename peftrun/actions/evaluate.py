"""Compute the task's metrics on evaluation rows: of the base model alone, or with an adapter."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import load, mixed_batch, reference
from peftrun.artifacts import adapter_folder, classifier_head
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.models import base_cache, placement
from peftrun.models.base import LoadedBase
from peftrun.result import RunResult
from peftrun.tasks import causal_lm, lm_eval, own_functions

ADAPTER_SIDE = "adapter"  # name of the adapter's results if there is only one adapter
SAMPLES = "samples.jsonl"  # in the run folder: the requests of lm-evaluation-harness and the answers


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The task's metrics for the base model, or for the active adapter on it."""
    if spec.task.lm_eval is not None:
        return _run_lm_eval(spec, out_dir)
    tasks.check_data_columns(spec.task)
    own_functions.load_functions(spec.task)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    base, facts = _load_base(spec, adapters)
    rows = tasks.load_task_rows(spec.task, base, adapter_folder.virtual_tokens(adapters))
    tasks.warn_on_other_dataset(spec.task, rows, adapters)
    facts["data"] = rows.describe()
    net, subject = base.model, f"{base.name} alone"
    if adapters:
        net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
        subject = f"adapter {net.active_adapter} on {base.name}"
    console.set_activity(f"evaluating {len(rows.held_out)} rows")
    task_module, batch_size = tasks.import_task_module(spec.task.type), spec.trainer.per_device_eval_batch_size
    summary = [("measured", subject), ("evaluation", format_count(len(rows.held_out), "row"))]
    if spec.task.data.adapter_column:
        metrics, per_adapter = _evaluate_per_adapter(net, base.tokenizer, rows.held_out, batch_size, spec.adapter)
        facts["per_adapter"] = per_adapter
        summary[0] = ("measured", f"each row's own adapter on {base.name}")
        summary += [
            (f"{name}: {key}", f"{value:.4f}") for name, values in per_adapter.items() for key, value in values.items()
        ]
    else:
        active = adapters.get(net.active_adapter) if adapters else None
        with reference.use_recorded_reference(base, net, active, spec.task.objective) as about_reference:
            metrics = task_module.evaluate(net, base.tokenizer, rows.held_out, batch_size, spec.task)
        facts |= about_reference
    summary += [(name, f"{value:.4f}") for name, value in metrics.items()]
    return RunResult(out_dir, facts, metrics, summary=summary, objective=metrics["loss"])


def _load_base(spec: RunSpec, adapters: dict[str, AdapterRef]) -> tuple[LoadedBase, dict[str, Any]]:
    """The base model on its device, and facts on both for the record."""
    run_device = placement.resolve_run_device(spec)
    console.print_info(run_device.note)
    base = base_cache.load_cached_base(
        spec.model, run_device, head=classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    )
    return base, {"base": base.describe(), "device": run_device.note}


def _evaluate_per_adapter(
    net: Any, tokenizer: Any, rows: list[causal_lm.Row], batch_size: int, adapters: dict[str, str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics over all rows, each routed to the adapter that it names; and adapter → metrics over its rows."""
    names = [row.adapter for row in rows]
    unknown = sorted({str(name) for name in names} - {*adapters, BASE_ADAPTER_NAME})
    if unknown:
        raise DataError(
            f"task.data.adapter_column: a row names {unknown[0]}, which is not loaded; loaded: {', '.join([*adapters, BASE_ADAPTER_NAME])}"
        )
    groups = mixed_batch.group_rows(net, names)  # lists of row indices; rows of one group can share a forward pass
    if len(groups) > 1:
        console.print_info(
            f"rows are evaluated adapter by adapter: {mixed_batch.why_not_mixable(net, names)}, which cannot share a batch"
        )
    scores = [
        score
        for group in groups
        for score in causal_lm.score_rows(net, tokenizer, [rows[row] for row in group], batch_size)
    ]
    adapter_scores = {
        str(name): [score for score in scores if score.row.adapter == name] for name in dict.fromkeys(names)
    }
    return causal_lm.compute_metrics(scores), {
        name: {**causal_lm.compute_metrics(row_scores), "rows": len(row_scores)}
        for name, row_scores in adapter_scores.items()
    }


def _run_lm_eval(spec: RunSpec, out_dir: Path) -> RunResult:
    """Runs tasks of lm-evaluation-harness on the base model and with each adapter (with `active`: only that one) in one process."""
    assert spec.task.lm_eval is not None
    harness = lm_eval.LmEvalHarness(spec.task.lm_eval, spec.trainer.per_device_eval_batch_size, spec.seed)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    base, facts = _load_base(spec, adapters)
    summary, results = [("base", base.name)], {}
    if adapters:
        net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
        facts["adapters"] = [proof.as_dict() for proof in proofs]
        names = [spec.active_adapter] if spec.active_adapter else list(adapters)
        summary.append(("adapter" if len(names) == 1 else "adapters", ", ".join(names)))
        with net.disable_adapter():
            results[BASE_ADAPTER_NAME] = harness.measure(net, base.tokenizer)
        for name in names:
            net.set_adapter(name)  # the base model stays in memory; only the active adapter changes
            results[name if len(names) > 1 else ADAPTER_SIDE] = harness.measure(net, base.tokenizer)
    else:
        results[BASE_ADAPTER_NAME] = harness.measure(base.model, base.tokenizer)
    result = _build_lm_eval_result(out_dir, facts, summary, results)
    if spec.task.lm_eval.log_samples:
        atomic_files.write_text(out_dir / SAMPLES, lm_eval.format_samples(results))
        result.summary.append(("samples", console.shorten_path(out_dir / SAMPLES)))
    return result


def _build_lm_eval_result(
    out_dir: Path, facts: dict[str, Any], summary: list[tuple[str, str]], results: dict[str, Any]
) -> RunResult:
    base_result = results[BASE_ADAPTER_NAME]
    metrics = {side: lm_eval.read_metrics(result) for side, result in results.items()}
    differences = {
        side: lm_eval.compare_metrics(base_result, result)
        for side, result in results.items()
        if side != BASE_ADAPTER_NAME
    }
    summary += [("rows", lm_eval.format_row_counts(base_result)), *_format_metrics(metrics, differences)]
    difference_values = {
        side: {name: difference.as_dict() for name, difference in values.items()}
        for side, values in differences.items()
    }
    facts["lm_eval"] = {
        **lm_eval.describe_results(base_result),
        "stderr": {side: {name: metric.stderr for name, metric in values.items()} for side, values in metrics.items()},
        # With one adapter the differences are stored flat, with several by adapter.
        "difference": difference_values.get(ADAPTER_SIDE, {}) if len(results) < 3 else difference_values,
    }
    metric_values = {side: {name: metric.value for name, metric in values.items()} for side, values in metrics.items()}
    return RunResult(out_dir, facts, metric_values, summary=summary)


def _format_metrics(metrics: dict[str, Any], differences: dict[str, Any]) -> list[tuple[str, str]]:
    """A row per metric, "base → adapter, difference"; with several adapters a row per metric and adapter."""
    if len(differences) < 2:
        changes = differences.get(ADAPTER_SIDE, {})
        return [
            (
                name,
                " → ".join(str(row[name]) for row in metrics.values() if name in row) + _format_change(changes, name),
            )
            for name in metrics[BASE_ADAPTER_NAME]
        ]
    return [
        (f"{side}: {name}", f"{metrics[side][name]}{_format_change(differences.get(side, {}), name)}")
        for name in metrics[BASE_ADAPTER_NAME]
        for side in metrics
        if name in metrics[side]
    ]


def _format_change(changes: dict[str, Any], name: str) -> str:
    return f", {changes[name]}" if name in changes else ""
