"""Combines several adapters on the same base model into one, with PEFT's methods, and measures its distance from their weighted sum."""

import math
from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora import LoraLayer

from peftrun.compat.peft import inject_in_float32
from peftrun.config.schema.actions import CombineAction
from peftrun.errors import AdapterError, ProofError

CAT_UNITS = 8  # rounding tolerance of `cat`, in eps of the factors' dtype
COMBINED = "default"  # name of the result, which PEFT saves at the top of its folder
MIN_NORM = 1e-12  # squared norm of the result relative to its inputs, below which it is rounding only
# Fields of PEFT's config that are contained in A, B and their scaling, or that matter in training only. Any other field would be lost, or
# apply with the first adapter's value to the whole combination.
COMBINED_FIELDS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "fan_in_fan_out", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "velora_config", "qalora_group_size", "runtime_config", "megatron_config", "megatron_core", "ensure_weight_tying",
    *(field.name for field in fields(PeftConfig)),
}  # fmt: skip
SAME_RANK = (
    "linear",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
)  # combine A with A and B with B, elementwise


def check_combinable(configs: dict[str, Any], combination: str) -> None:
    """Raises: AdapterError: PEFT would refuse these adapters, or silently drop a part of them."""
    lines = []
    for name, config in configs.items():
        peft_type = getattr(config.peft_type, "value", config.peft_type)
        if peft_type != "LORA":
            lines.append(f"adapter.{name}: is of type {peft_type}, and only LoRA can be combined")
            continue
        lost = [
            field.name
            for field in fields(config)
            if field.name not in COMBINED_FIELDS
            and getattr(config, field.name)
            and getattr(config, field.name) != field.default
        ]
        if lost:
            key = f"bias={config.bias}" if lost[0] == "bias" else lost[0]
            advice = "leave it out" if key == "alora_invocation_tokens" else "combine merged models instead"
            lines.append(f"adapter.{name}: has {key}, which no combination takes along; {advice}")
    ranks = {
        str((config.r, sorted((config.rank_pattern or {}).items())))
        for config in configs.values()
        if hasattr(config, "r")
    }
    if combination in SAME_RANK and len(ranks) > 1:
        svd = "svd" if combination == "linear" else f"{combination}_svd"
        lines.append(
            f"action.combination_type={combination}: needs adapters of equal ranks; type action.combination_type=cat, or "
            f"action.combination_type={svd}"
        )
    if lines:
        raise AdapterError(*lines)


def combine_adapters(model: Any, action: CombineAction) -> dict[str, Any]:
    """Adds the combination to `model` as adapter `COMBINED`. Returns its distance from the weighted sum: see `_measure_distance`.

    Raises: AdapterError: see `check_combinable`; or the combination leaves a module out. ProofError: `cat` is not the weighted sum.
    """
    names = list(model.peft_config)
    weights = {name: (action.weights or {}).get(name, 1.0) for name in names}
    check_combinable(dict(model.peft_config), action.combination_type)
    first = model.peft_config[names[0]]
    # PEFT copies the first config for the result, whose factors contain the scaling already: rsLoRA would scale them again
    use_rslora, first.use_rslora = first.use_rslora, False
    try:
        with inject_in_float32(model):
            model.add_weighted_adapter(
                names, list(weights.values()), COMBINED, combination_type=action.combination_type, svd_rank=action.rank,
                svd_full_matrices=False, density=action.density, majority_sign_method=action.majority_sign_method,
            )  # fmt: skip
    except (ValueError, RuntimeError, TypeError) as error:
        raise AdapterError(
            f"action.combination_type={action.combination_type}: PEFT cannot combine these adapters ({' '.join(str(error).split())[:200]}); "
            "type action.combination_type=svd"
        ) from error
    finally:
        first.use_rslora = use_rslora
    if action.combination_type in SAME_RANK:
        # Each module keeps its own rank, but PEFT's config of the result has the largest one for all and could not be loaded.
        combined = model.peft_config[COMBINED]
        combined.r = combined.lora_alpha = first.r
        combined.rank_pattern = dict(first.rank_pattern or {})
        combined.alpha_pattern = dict(combined.rank_pattern)  # alpha = r: a scaling of 1, as in the factors
    figures = _measure_distance(model, weights)
    factors = (parameter for name, parameter in model.named_parameters() if "lora_" in name)
    eps = max(torch.finfo(factor.dtype).eps for factor in factors)  # of the coarsest dtype
    if action.combination_type == "cat" and not figures["relative_error"] <= CAT_UNITS * eps:
        raise ProofError(
            f"the combination is {figures['relative_error']:.2g} off the weighted sum, which action.combination_type=cat is up to rounding; "
            "this is a fault of peftrun or PEFT: report it, and combine merged models meanwhile",
            facts={"combined": figures},
        )
    return figures


def _measure_distance(model: Any, weights: dict[str, float]) -> dict[str, Any]:
    """‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖ (Frobenius, in float64, from the factors only), over all modules and for each.

    Raises: AdapterError: the combination leaves a module out, or is zero.
    """
    modules = {key: module for key, module in model.named_modules() if isinstance(module, LoraLayer)}
    errors: dict[str, float] = {}
    total_error = total_sum = total_combined = total_inputs = 0.0  # squared norms
    for key, module in modules.items():
        terms = [(weight, *_get_factors(module, name)) for name, weight in weights.items() if name in module.scaling]
        if terms and COMBINED not in module.scaling:
            raise AdapterError(
                f"{key}: the combination would leave this module out; type action.combination_type=svd, or combine merged models"
            )
        if not terms:
            continue
        combined = (1.0, *_get_factors(module, COMBINED))
        error = _squared_norm([combined, *((-weight, a, b) for weight, a, b in terms)])
        weighted_sum = _squared_norm(terms)
        errors[key] = math.sqrt(error / weighted_sum) if weighted_sum else 0.0
        total_error, total_sum = total_error + error, total_sum + weighted_sum
        total_combined += _squared_norm([combined])
        total_inputs += sum(_squared_norm([term]) for term in terms)
    if total_combined <= MIN_NORM * total_inputs:
        raise AdapterError(
            "action.weights: the combination changes nothing, its parts cancel out; choose other weights"
        )
    relative_error = math.sqrt(total_error / total_sum) if total_sum else math.inf
    return {"relative_error": relative_error, "relative_errors": errors}


def _get_factors(module: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and scaling·B (out, r) in float64, convolution kernels flattened."""
    if name in module.lora_embedding_A:
        a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
    else:
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return a.detach().double().flatten(1), b.detach().double().flatten(1) * module.scaling[name]


def _squared_norm(terms: list[tuple[float, torch.Tensor, torch.Tensor]]) -> float:
    """Squared Frobenius norm of Σ w·B·A: Σ (BᵀB ∘ AAᵀ) of the concatenated factors, without computing ΔW (out, in)."""
    a = torch.cat([weight * a for weight, a, _ in terms])  # (Σr, in)
    b = torch.cat([b for _, _, b in terms], dim=1)  # (out, Σr)
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))  # clamp: rounding can make it slightly negative
