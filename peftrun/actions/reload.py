"""Load adapters in a fresh process, prove each load, say where every adapted module is, evaluate."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import load, streamed_load
from peftrun.adapters.layer_walk import NotWalkableError
from peftrun.adapters.load import LoadProof
from peftrun.artifacts import adapter_folder, classifier_head
from peftrun.config.schema.actions import ReloadAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import AdapterError
from peftrun.models import base_cache, placement
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device
from peftrun.result import RunResult


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The proofs of load and, if asked, the task's metrics."""
    assert isinstance(spec.action, ReloadAction)
    place = placement.resolve_run_device(spec)
    console.print_info(place.note)
    if spec.action.evaluate:
        tasks.check_data_columns(spec.task)
    base, net, proofs = _load_adapters(spec, place)
    placed = load.describe_placement(net)
    result = RunResult(out_dir, _build_facts(base, place, proofs, placed), summary=_build_summary(base, proofs, placed))
    if spec.action.evaluate:
        rows = tasks.load_task_rows(spec.task, base, adapter_folder.virtual_tokens(spec.adapter))
        tasks.warn_on_other_dataset(spec.task, rows, spec.adapter)
        result.facts["data"] = rows.describe()
        console.set_activity(f"measuring {len(rows.held_out)} held-out rows")
        result.metrics = tasks.import_task_module(spec.task.kind).evaluate(
            net, base.tokenizer, rows.held_out, spec.trainer.per_device_eval_batch_size, spec.task
        )
        result.summary += [(name, f"{value:.4f}") for name, value in result.metrics.items()]
        result.objective = result.metrics["loss"]
    path = next(iter(spec.adapter.values()))
    generate = [] if base.head else [f"peftrun action=generate adapter={path}"]
    result.next_commands = [*generate, f"peftrun action=merge adapter={path}"]
    return result


def _load_adapters(spec: RunSpec, place: Device) -> tuple[LoadedBase, Any, list[LoadProof]]:
    """Base, adapters on it, proofs. An adapter that is proved and nothing else needs no base in memory."""
    assert isinstance(spec.action, ReloadAction)
    if not spec.action.evaluate and len(spec.adapter) == 1:
        ((name, path),) = spec.adapter.items()
        try:
            base, net, proof = streamed_load.verify_streamed_load(
                spec.model, place, path, name, spec.allow_base_mismatch
            )
            return base, net, [proof]
        except (NotWalkableError, AdapterError):
            pass  # whole, it loads, or says why not
    base = base_cache.load_cached_base(
        spec.model, place, head=classifier_head.select_head(spec.task, spec.adapter, spec.active)
    )
    net, proofs = load.load(base, spec.adapter, spec.active, spec.allow_base_mismatch)
    return base, net, proofs


def _build_facts(base: Any, place: Any, proofs: list[LoadProof], placed: dict[str, Any]) -> dict[str, Any]:
    return {
        "base": base.describe(),
        "device": place.note,
        "adapters": [proof.as_dict() for proof in proofs],
        "placement": placed,
    }


def _build_summary(base: Any, proofs: list[LoadProof], placed: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("base", f"{base.name} ({base.fingerprint.short()})")]
    for proof in proofs:
        rows += [
            (
                f"adapter {proof.name}",
                f"{proof.tensors} tensors landed in {proof.modules} modules{_format_norm(proof)}",
            ),
            ("made for this base", _format_base_match(proof)),
            ("differs from base", _format_effect(proof)),
            ("equals what was saved", _format_saved_difference(proof)),
        ]
    modules = ", ".join(f"{count} on {where}" for where, count in placed["adapted_modules"].items())
    return [*rows, ("active", ", ".join(placed["active_adapters"])), ("adapted modules", modules)]


def _format_base_match(proof: LoadProof) -> str:
    if proof.base_differs_in:
        return f"no: another {' and another '.join(proof.base_differs_in)}"
    return "yes" if proof.base_checked else "not known"


def _format_norm(proof: LoadProof) -> str:
    return f", ‖ΔW‖ {proof.delta_norm:.4g}" if proof.delta_norms else ""


def _format_effect(proof: LoadProof) -> str:
    if proof.fresh:
        return f"a fresh adapter: max |Δlogit| {proof.effect['max_logit_difference']:.3g}"
    return f"max |Δlogit| {proof.effect['max_logit_difference']:.3g}, KL {proof.effect['kl_divergence']:.3g}"


def _format_saved_difference(proof: LoadProof) -> str:
    if proof.saved_difference is None:
        return "nothing kept to compare with on this device and dtype"
    return f"max |Δlogit| {proof.saved_difference:.3g}"
