"""One adapter of several on the same base, by PEFT's definitions, and its distance from their weighted sum."""

import math
from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora import LoraLayer

from peftrun.config.schema.actions import CombineAction
from peftrun.errors import AdapterError, ProofError

CAT_UNITS = 8  # of the factors' dtype: what scaling and rounding them costs
COMBINED = "default"  # the name of the result: it lies at the top of its folder
MIN_NORM = 1e-12  # of the squared norms, in float32 arithmetic
# Fields of PEFT's config that are in A, B and their scaling, or that matter in training alone. What another field says would be lost, or be
# the first adapter's for the whole sum.
COMBINED_FIELDS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "fan_in_fan_out", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "velora_config", "qalora_group_size", "runtime_config", "megatron_config", "megatron_core", "ensure_weight_tying",
    *(field.name for field in fields(PeftConfig)),
}  # fmt: skip
SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # of A and B, one by one


def check_combinable(configs: dict[str, Any], combination: str) -> None:
    """Raises: AdapterError: PEFT would refuse these adapters, or combine them into something else without a word."""
    lines = []
    for name, config in configs.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            lines.append(f"adapter.{name}: is of type {kind}, and only LoRA can be combined")
        elif key := _find_uncombined_field(config):
            advice = "leave it out" if key == "alora_invocation_tokens" else "combine merged models instead"
            lines.append(f"adapter.{name}: has {key}, which no combination takes along; {advice}")
    ranks = {
        str((config.r, sorted((config.rank_pattern or {}).items())))
        for config in configs.values()
        if hasattr(config, "r")
    }
    if combination in SAME_RANK and len(ranks) > 1:
        lines.append(
            f"action.combination={combination}: needs adapters of equal ranks; type action.combination=cat, or "
            f"action.combination={combination if combination != 'linear' else ''}{'_' if combination != 'linear' else ''}svd"
        )
    if lines:
        raise AdapterError(*lines)


def _find_uncombined_field(config: Any) -> str | None:
    """What the adapter has beside its factors, if anything."""
    own = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in COMBINED_FIELDS}
    usual = {field.name: field.default for field in fields(config)}
    odd = [key for key, value in own.items() if value and value != usual[key]]
    return f"bias={config.bias}" if odd[:1] == ["bias"] else next(iter(odd), None)


def combine_adapters(model: Any, action: CombineAction) -> dict[str, Any]:
    """Adds the combination to `model` under the name `COMBINED`; its distance from the sum, in all and by module.

    Raises: AdapterError: see `check`; or a module of an adapter has no place in the combination.
    """
    names = list(model.peft_config)
    weights = {name: (action.weights or {}).get(name, 1.0) for name in names}
    check_combinable(dict(model.peft_config), action.combination)
    first = model.peft_config[names[0]]
    stabilised, first.use_rslora = first.use_rslora, False  # PEFT would scale the result by it once more
    try:
        model.add_weighted_adapter(
            names, list(weights.values()), COMBINED, combination_type=action.combination, svd_rank=action.rank,
            svd_full_matrices=False, density=action.density, majority_sign_method=action.majority_sign_method,
        )  # fmt: skip
    except (ValueError, RuntimeError, TypeError) as error:
        raise AdapterError(
            f"action.combination={action.combination}: PEFT cannot combine these adapters ({' '.join(str(error).split())[:200]}); "
            "type action.combination=svd"
        ) from error
    finally:
        first.use_rslora = stabilised
    if action.combination in SAME_RANK:
        _set_rank_patterns(model.peft_config[COMBINED], first)
    figures = _measure_distance(model, weights)
    if action.combination == "cat" and not figures["relative_error"] <= CAT_UNITS * _coarsest_eps(model):
        raise ProofError(
            f"the combination is {figures['relative_error']:.2g} off the weighted sum, which action.combination=cat is up to rounding; "
            "this is a fault of peftrun or PEFT: report it, and combine merged models meanwhile",
            facts={"combined": figures},
        )
    return figures


def _set_rank_patterns(combined: Any, first: Any) -> None:
    """Each module keeps its own rank, and PEFT's config of the result says the largest one for all: it could not be loaded. Scaling stays 1."""
    combined.r = combined.lora_alpha = first.r
    combined.rank_pattern = dict(first.rank_pattern or {})
    combined.alpha_pattern = dict(combined.rank_pattern)


def _coarsest_eps(model: Any) -> float:
    """The unit of the coarsest dtype that factors are held in."""
    factors = (one for name, one in model.named_parameters() if "lora_" in name)
    return max(torch.finfo(one.dtype).eps for one in factors)


def _measure_distance(model: Any, weights: dict[str, float]) -> dict[str, Any]:
    """‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖ (Frobenius, in float64, from factors alone)."""
    modules = {key: module for key, module in model.named_modules() if isinstance(module, LoraLayer)}
    wrong, whole, each, made, apart = 0.0, 0.0, {}, 0.0, 0.0
    for key, module in modules.items():
        parts = [(weight, *_get_factors(module, name)) for name, weight in weights.items() if name in module.scaling]
        if parts and COMBINED not in module.scaling:
            raise AdapterError(
                f"{key}: the combination would leave this module out; type action.combination=svd, or combine merged models"
            )
        if not parts:
            continue
        off = _squared_norm(
            [(1.0, *_get_factors(module, COMBINED)), *((-weight, down, up) for weight, down, up in parts)]
        )
        ideal = _squared_norm(parts)
        wrong, whole = wrong + off, whole + ideal
        made, apart = (
            made + _squared_norm([(1.0, *_get_factors(module, COMBINED))]),
            apart + sum(_squared_norm([one]) for one in parts),
        )
        each[key] = math.sqrt(off / ideal) if ideal else 0.0
    if made <= MIN_NORM * apart:
        raise AdapterError(
            "action.weights: the combination changes nothing, its parts cancel out; choose other weights"
        )
    return {"relative_error": math.sqrt(wrong / whole) if whole else math.inf, "relative_errors": each}


def _get_factors(module: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and scaling·B in float64."""
    if name in module.lora_embedding_A:
        down, up = module.lora_embedding_A[name], module.lora_embedding_B[name]
    else:
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return down.detach().double().flatten(1), up.detach().double().flatten(1) * module.scaling[name]


def _squared_norm(parts: list[tuple[float, torch.Tensor, torch.Tensor]]) -> float:
    """Squared Frobenius norm of Σ w·B·A: Σ (BᵀB ∘ AAᵀ) of the stacked factors."""
    down = torch.cat([weight * a for weight, a, _ in parts])
    up = torch.cat([b for _, _, b in parts], dim=1)
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0))
