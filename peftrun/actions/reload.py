"""Load adapters in a fresh process, verify each load, report the device of every adapted module, evaluate."""

from pathlib import Path
from typing import Any

from peftrun import console, tasks
from peftrun.adapters import load, reference, streamed_load
from peftrun.adapters.layer_walk import NotWalkableError
from peftrun.adapters.load import LoadProof
from peftrun.artifacts import adapter_folder, adapter_rules, classifier_head
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.actions import ReloadAction
from peftrun.config.schema.run import RunSpec
from peftrun.errors import AdapterError
from peftrun.models import base_cache, device, placement
from peftrun.models.base import LoadedBase
from peftrun.result import RunResult
from peftrun.tasks import own_functions


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """The load proofs and, with `action.evaluate=true`, the task's metrics."""
    assert isinstance(spec.action, ReloadAction)
    if spec.action.evaluate:
        tasks.check_data_columns(spec.task)
        own_functions.load_functions(spec.task)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    base, net, proofs = _load_adapters(spec, adapters)
    placement_facts = load.describe_placement(net)
    facts = {
        "base": base.describe(),
        "device": base.device.note,
        "adapters": [proof.as_dict() for proof in proofs],
        "placement": placement_facts,
    }
    result = RunResult(out_dir, facts, summary=_build_summary(base, proofs, placement_facts))
    if spec.action.evaluate:
        rows = tasks.load_task_rows(spec.task, base, adapter_folder.virtual_tokens(adapters))
        tasks.warn_on_other_dataset(spec.task, rows, adapters)
        result.facts["data"] = rows.describe()
        console.set_activity(f"evaluating {len(rows.held_out)} rows")
        active = adapters[net.active_adapter]
        with reference.use_recorded_reference(base, net, active, spec.task.objective) as about_reference:
            result.metrics = tasks.import_task_module(spec.task.type).evaluate(
                net, base.tokenizer, rows.held_out, spec.trainer.per_device_eval_batch_size, spec.task
            )
        result.facts |= about_reference
        result.summary += [(name, f"{value:.4f}") for name, value in result.metrics.items()]
        result.objective = result.metrics["loss"]
    first = next(iter(adapters.values()))
    result.next_commands = [
        *([] if base.head else [f"peftrun action=generate adapter={first.path}"]),
        *([] if adapter_rules.why_not_merged(first.config) else [f"peftrun action=merge adapter={first.path}"]),
    ]
    return result


def _load_adapters(spec: RunSpec, adapters: dict[str, AdapterRef]) -> tuple[LoadedBase, Any, list[LoadProof]]:
    """The base model, the PEFT model, and a proof for each adapter."""
    assert isinstance(spec.action, ReloadAction)
    place, tried = device.resolve_device(spec.device), ""
    if not spec.action.evaluate and len(adapters) == 1:
        # A single adapter that is only verified is checked layer by layer, without the whole base model in memory.
        (adapter,) = adapters.values()
        streamed = streamed_load.choose_dtype(place, adapter) if spec.device.dtype == "auto" else place
        tried = streamed.note
        console.print_info(tried)
        try:
            base, net, proof = streamed_load.verify_streamed_load(
                spec.model, streamed, adapter, spec.allow_base_mismatch
            )
            return base, net, [proof]
        except (NotWalkableError, AdapterError):
            pass  # load the whole model instead, which succeeds or explains the error
    run_device = placement.fit_device(place, spec)
    if run_device.note != tried:
        console.print_info(run_device.note)
    base = base_cache.load_cached_base(
        spec.model, run_device, head=classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    )
    net, proofs = load.load(base, adapters, spec.active_adapter, spec.allow_base_mismatch)
    return base, net, proofs


def _build_summary(base: Any, proofs: list[LoadProof], placement_facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("base", f"{base.name} ({base.fingerprint.short()})")]
    for proof in proofs:
        norm = f", ‖ΔW‖ {proof.delta_norm:.4g}" if proof.delta_norms else ""
        match = "yes" if proof.base_checked else "not known"
        if proof.base_differs_in:
            match = f"no: another {' and another '.join(proof.base_differs_in)}"
        # The logits of the adapter's fixed probes, compared with those of the base model and with those at saving.
        effect = f"max |Δlogit| {proof.effect['max_logit_difference']:.3g}"
        if proof.untrained:  # B = 0 in most methods, so no effect is expected
            effect = f"an untrained adapter: {effect}"
        else:
            effect += f", KL {proof.effect['kl_divergence']:.3g}"
        saved = "no logits were recorded for this device and dtype"
        if proof.saved_difference is not None:
            saved = f"max |Δlogit| {proof.saved_difference:.3g}"
        rows += [
            (f"adapter {proof.name}", f"{proof.tensors} tensors loaded into {proof.modules} modules{norm}"),
            ("made for this base", match),
            ("differs from base", effect),
            ("equals what was saved", saved),
        ]
    modules = ", ".join(f"{count} on {device}" for device, count in placement_facts["adapted_modules"].items())
    return [*rows, ("active", ", ".join(placement_facts["active_adapters"])), ("adapted modules", modules)]
