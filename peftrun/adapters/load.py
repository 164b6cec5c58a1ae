"""Loads adapters from disk onto a base model, and verifies each load."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import BdLoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer

from peftrun.adapters import add, base_match, probes, saved_base, shared_encoder, trainable_tokens, traits
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.compat.peft import list_adapters
from peftrun.config.schema.quantization_formats import FORMATS
from peftrun.errors import AdapterError, ProofError
from peftrun.models.base import LoadedBase
from peftrun.models.device import get_input_device

COMPUTED_TENSORS = ("_topk_weights",)  # VB-LoRA's: recomputed by PEFT at load, so equal up to rounding only


@dataclass
class LoadProof:
    """What was verified when one adapter was loaded.

    Attributes:
        tensors: tensors in the file; each was loaded, and equals the model's.
        modules: adapted modules.
        delta_norm: Frobenius norm of the change to the base model's weights, over all LoRA modules.
        delta_norms: the same for each of them; empty for other methods.
        untrained: whether it was saved untrained.
        base_checked: whether the base model's weights are known to be those it was made for.
        base_differs_in: parts of the base model that differ from those it was made for.
        effect: distance of the adapted logits from the base model's, on the probes.
        saved_difference: max |Δlogit| from the logits recorded when it was saved; None if none were recorded.
    """

    name: str
    path: str
    tensors: int
    modules: int
    delta_norm: float
    delta_norms: dict[str, float]
    untrained: bool
    base_checked: bool
    base_differs_in: list[str]
    effect: dict[str, float]
    saved_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def load(
    base: LoadedBase, adapters: Mapping[str, AdapterRef], active: str | None, allow_base_mismatch: bool
) -> tuple[Any, list[LoadProof]]:
    """The base model with every adapter loaded, `active` (or the first) active; and the proof of each load.

    Raises: AdapterError: an adapter does not fit, or was made for another base model.
        ProofError: it is loaded, but changes nothing, or its logits differ from those when it was saved.
    """
    add.check_adapter_rules(base, adapters)
    for adapter in adapters.values():
        base_match.check_base_match(base.name, base.fingerprint, adapter, allow_base_mismatch, lambda: base.tokenizer)
    add_each = add.add_classifiers if base.head else add.add_adapters
    model, plain = add_each(base, adapters)
    proofs = [verify_load(base, model, adapter, plain[name]) for name, adapter in adapters.items()]
    if len(adapters) > 1:
        _check_base_unchanged(base, model, plain)
    model.set_adapter(active or next(iter(adapters)))
    return model.requires_grad_(False).eval(), proofs


def describe_placement(model: Any) -> dict[str, Any]:
    """Active adapters, and `DEVICE DTYPE` → number of adapted modules with adapter weights of these."""
    counts: Counter[str] = Counter()
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        counts.update(
            {
                f"{parameter.device} {str(parameter.dtype).removeprefix('torch.')}"
                for name, parameter in layer.named_parameters()
                if name.startswith(tuple(layer.adapter_layer_names))
            }
        )
    return {"active_adapters": model.active_adapters, "adapted_modules": dict(counts)}


def _check_base_unchanged(base: LoadedBase, model: Any, plain: dict[str, torch.Tensor]) -> None:
    """Raises: ProofError: with all adapters disabled, the base model's logits differ from those before they were loaded."""
    first = next(iter(plain))
    model.set_adapter(first)
    peft_model = shared_encoder.find_peft_model(model, first)
    with peft_model.disable_adapter():
        logits = probes.compute_probe_logits(peft_model, base.tokenizer, traits.get_invocation_tokens(model))
    limit = max(1e-4, 4 * torch.finfo(base.model.dtype).eps) * float(plain[first].abs().max())
    difference = probes.compare_logits(plain[first], logits)["max_logit_difference"]
    if not difference <= limit:  # not `>`, which is False for NaN
        raise ProofError(
            f"adapter: one of {', '.join(plain)} changes the base that the others answer from (max |Δlogit| {difference:.3g} with all of them "
            "off); load each alone"
        )


def verify_load(base: LoadedBase, model: Any, adapter: AdapterRef, plain: torch.Tensor) -> LoadProof:
    """The proof of an adapter that was added. `plain`: the base model's logits on the probes. Raises: AdapterError, ProofError: see `load`."""
    model.set_adapter(adapter.name)
    tensors = check_tensors(shared_encoder.find_peft_model(model, adapter.name), adapter)
    adapted = probes.compute_probe_logits(model, base.tokenizer, traits.get_invocation_tokens(model))
    computed = ProbeLogits(plain, adapted, _describe_numerics(base))
    return verify_load_by_logits(base.fingerprint, model, adapter, computed, tensors=tensors)


@dataclass(frozen=True)
class ProbeLogits:
    """Logits on the probes, (tokens, vocabulary): of the base model, and with the adapter. `on`: `DEVICE DTYPE [QUANTIZATION]` of the computation."""

    plain: torch.Tensor
    adapted: torch.Tensor
    on: str

    @property
    def precision(self) -> str:
        """The dtype whose rounding bounds their error: bfloat16's 8 bits where a quantized base model rounds the inputs of layers to 8."""
        _, dtype, *quantization = self.on.split()
        return "bfloat16" if any(FORMATS[name].rounds_inputs for name in quantization) else dtype


def verify_load_by_logits(
    mark: Fingerprint, model: Any, adapter: AdapterRef, logits: ProbeLogits, *, tensors: int
) -> LoadProof:
    """The same from logits computed by the caller. `mark`: the base model's. `tensors`: see `check_tensors`. Raises: ProofError: see `load`."""
    name, metadata = adapter.name, adapter.metadata or {}
    norms, differing = compute_delta_norms(model, name), base_match.find_differing_parts(mark, metadata or None)
    proof = LoadProof(
        name=name,
        path=str(adapter.folder),
        tensors=tensors,
        # prompt tuning adapts no module, but has one of its own
        modules=len(_list_adapted_modules(model, name)) or int(name in getattr(model, "prompt_encoder", ())),
        delta_norms=norms,
        delta_norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        untrained=bool(metadata.get("untrained")),
        base_checked=bool(metadata) and base_match.WEIGHTS not in differing,
        base_differs_in=differing,
        effect=probes.compare_logits(logits.plain, logits.adapted),
        saved_difference=None,
    )
    # comparable only on the same device and dtype, base model and tokenizer
    recorded = metadata.get("probe", {}).get(logits.on)
    if recorded and proof.base_checked and base_match.TOKENIZER not in differing:
        proof.saved_difference = probes.measure_distance(logits.adapted, recorded)
    _check_effect(proof, probes.logit_tolerance(logits.adapted, proof.effect["max_logit_difference"], logits.precision))
    return proof


def _check_effect(proof: LoadProof, limit: float) -> None:
    if not math.isfinite(proof.effect["max_logit_difference"]):
        raise ProofError(
            f"{proof.path}: its logits are NaN or infinite; train again with a lower trainer.learning_rate"
        )
    if proof.effect["max_logit_difference"] == 0.0 and not proof.untrained:
        raise ProofError(
            f"{proof.path}: loads, but changes nothing (no logit differs from the base); it was never trained, or is not applied"
        )
    if proof.saved_difference is not None and proof.saved_difference > limit:
        raise ProofError(
            f"{proof.path}: answers otherwise than when it was saved "
            f"(max |Δlogit| {proof.saved_difference:.3g}, tolerance {limit:g}); restore the file, or train again"
        )


def check_tensors(model: Any, adapter: AdapterRef) -> int:
    """Number of tensors in the file, after comparing them one to one with the adapter's in the model.

    Call it before the first forward pass: some methods write into their own tensors while computing (OFT with coft=true).
    Raises: AdapterError: some are not finite, are missing or unexpected. ProofError: some differ from those in the file.
    """
    name, folder, saved = adapter.name, adapter.folder, saved_base.AdapterFile(adapter.weights)
    diverged = sorted(key for key, value in saved.items() if value.is_floating_point() and not value.isfinite().all())
    if diverged:
        raise AdapterError(
            f"{folder}: {len(diverged)} tensors hold NaN or infinity{_quote_first(diverged)}, so training has diverged; train again with a lower learning rate"
        )
    with trainable_tokens.skip_adapters_without_tokens(model, name):
        loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    # copies of the base model's embeddings, and second names of tied tensors, are not the adapter's
    copies = saved_base.map_base_embeddings(model, name, saved).keys() | saved_base.find_duplicate_names(saved, loaded)
    names = saved.keys() - copies
    missing, unexpected = sorted(loaded.keys() - names), sorted(names - loaded.keys())
    if missing or unexpected:
        raise AdapterError(
            f"{folder}: {len(missing)} adapted tensors are not in the file{_quote_first(missing)} and "
            f"{len(unexpected)} of the file have no place in the model{_quote_first(unexpected)}; it was made for another architecture"
        )
    differing = []
    for key in names:
        actual = loaded[key].cpu()
        expected = saved[key].to(actual.dtype)
        close = key.endswith(COMPUTED_TENSORS) and torch.allclose(expected, actual, rtol=1e-5, atol=0)
        if not (close or torch.equal(expected, actual)):
            differing.append(key)
    if differing:
        raise ProofError(
            f"{folder}: {len(differing)} loaded tensors differ from the file's{_quote_first(sorted(differing))}"
        )
    return len(names)


def _quote_first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""


def compute_delta_norms(model: Any, name: str) -> dict[str, float]:
    """Module → Frobenius norm of its scaling·B·A (not of BD-LoRA's blocks), from (r, r) products only."""
    return {
        key: _compute_delta_norm(module, name)
        for key, module in _list_adapted_modules(model, name)
        if isinstance(module, LoraLayer) and not isinstance(module.lora_variant.get(name), BdLoraLinearVariant)
    }


def _list_adapted_modules(model: Any, name: str) -> list[tuple[str, Any]]:
    """(path, module) of each layer that the adapter, of any method, changes."""
    layers = [(key, module) for key, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [(key, layer) for key, layer in layers if name in list_adapters(layer)]


def _compute_delta_norm(module: Any, name: str) -> float:
    if name in module.lora_embedding_A:
        a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
    elif (
        isinstance(module.lora_A, torch.nn.ModuleDict)
        and getattr(module, "num_experts", 1) <= 1
        and module.lora_A[name].weight.shape[0] == module.lora_B[name].weight.shape[1]
    ):
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
    else:  # AdaLoRA's singular values, experts: ΔW is not the product of two Linears
        return float(torch.linalg.vector_norm(module.get_delta_weight(name).float()))
    a, b = a.detach().float().flatten(1), b.detach().float().flatten(1)  # (r, in), (out, r)
    # ‖B·A‖² = Σ (AAᵀ ∘ BᵀB), without computing ΔW (out, in)
    return float(module.scaling[name] * ((a @ a.T) * (b.T @ b)).sum().clamp(min=0).sqrt())


def _describe_numerics(base: LoadedBase) -> str:
    """`DEVICE DTYPE [QUANTIZATION]`: logits are compared only where these are the same."""
    dtype = str(base.model.dtype).removeprefix("torch.")
    quantization = f" {base.spec.quantization}" if base.spec.quantization else ""
    return f"{get_input_device(base.model).type} {dtype}{quantization}"


def compute_probe_signature(base: LoadedBase, model: Any) -> dict[str, Any]:
    """`DEVICE DTYPE` → signature of the model's probe logits.

    Raises: ProofError: a logit is not a finite number.
    """
    logits = probes.compute_probe_logits(model, base.tokenizer, traits.get_invocation_tokens(model))
    if not logits.isfinite().all():
        raise ProofError(
            "the adapter's logits are NaN or infinite, so training has diverged; no adapter was saved. "
            "Lower trainer.learning_rate, or type device.dtype=float32"
        )
    return {_describe_numerics(base): probes.extract_top_logits(logits)}
