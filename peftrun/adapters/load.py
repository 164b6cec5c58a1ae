"""Adapters from disk onto a base, each load proved."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import BdLoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from peftrun.adapters import add, base_match, probes, saved_base, shared_encoder, trainable_tokens, traits
from peftrun.artifacts import adapter_folder
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.errors import AdapterError, ProofError
from peftrun.models.base import LoadedBase
from peftrun.models.device import get_input_device

COMPUTED_TENSORS = (
    "_topk_weights",
)  # what PEFT computes from a tensor that is not in the file (VB-LoRA), up to the last bits


@dataclass
class LoadProof:
    """What was seen when one adapter was loaded.

    Attributes:
        tensors: tensors in the file; each landed, and equals its place in the model.
        modules: adapted modules.
        delta_norm: Frobenius norm of the change to the base's weights, over all LoRA modules.
        base_checked, base_differs_in: whether the weights are those of the base it was made for; parts of the base that are not.
        delta_norms: the same for each of them; empty for other methods.
        effect: how far the adapted logits are from the base's, on the probes.
        saved_difference: max |Δlogit| against the logits kept when it was saved; None if none were kept.
    """

    name: str
    path: str
    tensors: int
    modules: int
    delta_norm: float
    delta_norms: dict[str, float]
    fresh: bool
    base_checked: bool
    base_differs_in: list[str]
    effect: dict[str, float]
    saved_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def load(
    base: LoadedBase, paths: dict[str, str], active: str | None, allow_base_mismatch: bool
) -> tuple[Any, list[LoadProof]]:
    """The base with every adapter loaded, `active` (or the first) answering; and the proof of each load.

    Raises: AdapterError: an adapter is broken, does not fit, or was made for another base.
        ProofError: it loaded, yet changes nothing or answers otherwise than when it was saved.
    """
    folders = {name: adapter_folder.resolve_adapter_dir(path, name) for name, path in paths.items()}
    add.check_adapter_rules(base, folders)
    for folder in folders.values():
        base_match.check_base_match(base.name, base.fingerprint, folder, allow_base_mismatch, lambda: base.tokenizer)
    add_each = add.add_classifiers if base.head else add.add_adapters
    model, plain = add_each(base, folders)
    proofs = [verify_load(base, model, name, folder, plain[name]) for name, folder in folders.items()]
    if len(folders) > 1:
        _check_base_unchanged(base, model, plain)
    model.set_adapter(active or next(iter(paths)))
    return model.requires_grad_(False).eval(), proofs


def describe_placement(model: Any) -> dict[str, Any]:
    """Active adapters, and for each device and dtype the number of adapted modules whose weights are there."""
    found: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            places = {
                f"{p.device} {str(p.dtype).removeprefix('torch.')}"
                for n, p in module.named_parameters()
                if n.startswith(tuple(module.adapter_layer_names))
            }
            for place in places:
                found[place] = found.get(place, 0) + 1
    return {"active_adapters": model.active_adapters, "adapted_modules": found}


def _check_base_unchanged(base: LoadedBase, model: Any, plain: dict[str, torch.Tensor]) -> None:
    """Raises: ProofError: with all adapters off, the base does not answer as it did before they were loaded."""
    first = next(iter(plain))
    model.set_adapter(first)
    own = shared_encoder.find_peft_model(model, first)
    with own.disable_adapter():
        found = probes.compute_probe_logits(own, base.tokenizer, traits.get_invocation_tokens(model))
    limit = max(1e-4, 4 * torch.finfo(base.model.dtype).eps) * float(plain[first].abs().max())
    difference = probes.compare_logits(plain[first], found)["max_logit_difference"]
    if not difference <= limit:
        raise ProofError(
            f"adapter: one of {', '.join(plain)} changes the base that the others answer from (max |Δlogit| {difference:.3g} with all of them "
            "off); load each alone"
        )


def verify_load(base: LoadedBase, model: Any, name: str, folder: Path, plain: torch.Tensor) -> LoadProof:
    """What was seen of an adapter that has been added. `plain`: the base's logits on the probes. Raises: AdapterError, ProofError: see `load`."""
    model.set_adapter(name)
    tensors = check_tensors(shared_encoder.find_peft_model(model, name), name, folder)
    adapted = probes.compute_probe_logits(model, base.tokenizer, traits.get_invocation_tokens(model))
    computed = ProbeLogits(plain, adapted, _describe_numerics(base))
    return verify_load_by_logits(base.fingerprint, model, name, folder, computed, tensors=tensors)


@dataclass(frozen=True)
class ProbeLogits:
    """Logits on the probes: of the base alone, and of the adapter on it. `on`: the device and the dtype that they were computed in."""

    plain: torch.Tensor
    adapted: torch.Tensor
    on: str


def verify_load_by_logits(
    mark: Fingerprint, model: Any, name: str, folder: Path, logits: ProbeLogits, *, tensors: int
) -> LoadProof:
    """The same by logits that were computed elsewhere. `mark`: of the base. `tensors`: see `check_tensors`. Raises: ProofError: see `load`."""
    known = adapter_folder.read_peftrun_metadata(folder) or {}
    norms, differing = compute_delta_norms(model, name), base_match.find_differing_parts(mark, known or None)
    proof = LoadProof(
        name=name,
        path=str(folder),
        tensors=tensors,
        modules=len(_list_adapted_modules(model, name)) or int(name in getattr(model, "prompt_encoder", ())),
        delta_norms=norms,
        delta_norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        fresh=bool(known.get("fresh")),
        base_checked=bool(known) and base_match.WEIGHTS not in differing,
        base_differs_in=differing,
        effect=probes.compare_logits(logits.plain, logits.adapted),
        saved_difference=None,
    )
    kept = known.get("probe", {}).get(logits.on)
    if kept and proof.base_checked and base_match.TOKENIZER not in differing:
        proof.saved_difference = probes.measure_distance(logits.adapted, kept)
    _check_effect(
        proof, probes.logit_tolerance(logits.adapted, proof.effect["max_logit_difference"], logits.on.split()[1])
    )
    return proof


def _check_effect(proof: LoadProof, limit: float) -> None:
    if not math.isfinite(proof.effect["max_logit_difference"]):
        raise ProofError(
            f"{proof.path}: answers with logits that are no finite numbers; train again with a lower trainer.learning_rate"
        )
    if proof.effect["max_logit_difference"] == 0.0 and not proof.fresh:
        raise ProofError(
            f"{proof.path}: loads, but changes nothing (no logit differs from the base); it was never trained, or is not applied"
        )
    if proof.saved_difference is not None and proof.saved_difference > limit:
        raise ProofError(
            f"{proof.path}: answers otherwise than when it was saved "
            f"(max |Δlogit| {proof.saved_difference:.3g}, tolerance {limit:g}); restore the file, or train again"
        )


def check_tensors(model: Any, name: str, folder: Path) -> int:
    """Number of tensors in the file, each found in the model with equal values, and none left over on either side.

    To be asked before the adapter answers: some methods write into their own tensors as they compute (OFT with coft=true).
    Raises: AdapterError: some are not finite, or have no place. ProofError: some are not what is in the file.
    """
    saved = load_file(folder / ADAPTER_WEIGHTS)
    broken = sorted(key for key, value in saved.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise AdapterError(
            f"{folder}: {len(broken)} tensors hold NaN or infinity{_quote_first(broken)}, so training has diverged; train again with a lower learning rate"
        )
    with trainable_tokens.skip_adapters_without_tokens(model, name):
        landed = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    saved = saved_base.drop_tensors(
        saved,
        saved_base.map_base_embeddings(model, name, saved).keys() | saved_base.find_duplicate_names(saved, landed),
    )
    missing, unexpected = sorted(landed.keys() - saved.keys()), sorted(saved.keys() - landed.keys())
    if missing or unexpected:
        raise AdapterError(
            f"{folder}: {len(missing)} adapted tensors are not in the file{_quote_first(missing)} and "
            f"{len(unexpected)} of the file have no place in the model{_quote_first(unexpected)}; it was made for another architecture"
        )
    differing = [key for key, value in saved.items() if not _is_loaded(key, value, landed[key].cpu())]
    if differing:
        raise ProofError(
            f"{folder}: {len(differing)} tensors did not land as they are in the file{_quote_first(differing)}"
        )
    return len(saved)


def _is_loaded(key: str, saved: torch.Tensor, found: torch.Tensor) -> bool:
    if key.endswith(COMPUTED_TENSORS):
        return torch.allclose(saved.to(found.dtype), found, rtol=1e-5, atol=0)
    return torch.equal(saved.to(found.dtype), found)


def _quote_first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""


def compute_delta_norms(model: Any, name: str) -> dict[str, float]:
    """Frobenius norm of scaling · B·A of each LoRA module (not of BD-LoRA's blocks), from r × r products alone."""
    return {
        key: _compute_delta_norm(module, name)
        for key, module in _list_adapted_modules(model, name)
        if isinstance(module, LoraLayer) and not isinstance(module.lora_variant.get(name), BdLoraLinearVariant)
    }


def _list_adapted_modules(model: Any, name: str) -> list[tuple[str, Any]]:
    """Modules that the adapter, of any method, changes; with their paths."""
    tuned = [(key, module) for key, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [(key, module) for key, module in tuned if name in module._all_available_adapter_names()]


def _compute_delta_norm(module: Any, name: str) -> float:
    if name in module.lora_embedding_A:
        down, up = module.lora_embedding_A[name], module.lora_embedding_B[name]
    elif _is_linear_pair(module, name):
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
    else:  # AdaLoRA's singular values, experts: no plain product of two Linears
        return float(torch.linalg.vector_norm(module.get_delta_weight(name).float()))
    down, up = down.detach().float().flatten(1), up.detach().float().flatten(1)
    return float(module.scaling[name] * ((down @ down.T) * (up.T @ up)).sum().clamp(min=0).sqrt())


def _is_linear_pair(module: Any, name: str) -> bool:
    if not isinstance(module.lora_A, torch.nn.ModuleDict) or getattr(module, "num_experts", 1) > 1:
        return False
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return bool(down.shape[0] == up.shape[1])


def _dtype_name(base: LoadedBase) -> str:
    return str(base.model.dtype).removeprefix("torch.")


def _describe_numerics(base: LoadedBase) -> str:
    held = f" {base.spec.quantization}" if base.spec.quantization else ""
    return f"{get_input_device(base.model).type} {_dtype_name(base)}{held}"


def compute_probe_signature(base: LoadedBase, model: Any) -> dict[str, Any]:
    """Signature of the model's probe logits, under the device and dtype they were computed with.

    Raises: ProofError: a logit is not a finite number.
    """
    found = probes.compute_probe_logits(model, base.tokenizer, traits.get_invocation_tokens(model))
    if not found.isfinite().all():
        raise ProofError(
            "the adapter answers with logits that are no finite numbers, so training has diverged; no adapter was saved. "
            "Lower trainer.learning_rate, or type device.dtype=float32"
        )
    return {_describe_numerics(base): probes.extract_top_logits(found)}
