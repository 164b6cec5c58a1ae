"""One adapter of several on the same base, by PEFT's definitions, and its distance from their weighted sum."""

import math
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from peftrun.action_specs import CombineAction
from peftrun.errors import AdapterError

COMBINED = "default"  # the name of the result: it lies at the top of its folder
NOTHING = 1e-12  # of the squared norms, in float32 arithmetic
SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # of A and B, one by one


def check(configs: dict[str, Any], combination: str) -> None:
    """Raises: AdapterError: PEFT would refuse these adapters, or combine them into something else without a word."""
    lines = []
    for name, config in configs.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        wrong = next((key for key in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, key, None)), None)
        if kind != "LORA":
            lines.append(f"adapter.{name}: is of type {kind}, and only LoRA can be combined")
        elif wrong or config.bias != "none":
            lines.append(
                f"adapter.{name}: has {wrong or f'bias={config.bias}'}, which no combination takes along; combine merged models instead"
            )
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


def combine(model: Any, action: CombineAction) -> dict[str, Any]:
    """Adds the combination to `model` under the name `COMBINED`; its distance from the sum, in all and by module.

    Raises: AdapterError: see `check`; or a module of an adapter has no place in the combination.
    """
    names = list(model.peft_config)
    weights = {name: (action.weights or {}).get(name, 1.0) for name in names}
    check(dict(model.peft_config), action.combination)
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
    return _distance(model, weights)


def _distance(model: Any, weights: dict[str, float]) -> dict[str, Any]:
    """‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖ (Frobenius, in float64, from factors alone)."""
    modules = {key: module for key, module in model.named_modules() if isinstance(module, LoraLayer)}
    wrong, whole, each, made, apart = 0.0, 0.0, {}, 0.0, 0.0
    for key, module in modules.items():
        parts = [(weight, *_factors(module, name)) for name, weight in weights.items() if name in module.scaling]
        if parts and COMBINED not in module.scaling:
            raise AdapterError(
                f"{key}: the combination would leave this module out; type action.combination=svd, or combine merged models"
            )
        if not parts:
            continue
        off = _squared([(1.0, *_factors(module, COMBINED)), *((-weight, down, up) for weight, down, up in parts)])
        ideal = _squared(parts)
        wrong, whole = wrong + off, whole + ideal
        made, apart = (
            made + _squared([(1.0, *_factors(module, COMBINED))]),
            apart + sum(_squared([one]) for one in parts),
        )
        each[key] = math.sqrt(off / ideal) if ideal else 0.0
    if made <= NOTHING * apart:
        raise AdapterError(
            "action.weights: the combination changes nothing, its parts cancel out; choose other weights"
        )
    return {"relative_error": math.sqrt(wrong / whole) if whole else math.inf, "relative_errors": each}


def _factors(module: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and scaling·B in float64."""
    if name in module.lora_embedding_A:
        down, up = module.lora_embedding_A[name], module.lora_embedding_B[name]
    else:
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return down.detach().double().flatten(1), up.detach().double().flatten(1) * module.scaling[name]


def _squared(parts: list[tuple[float, torch.Tensor, torch.Tensor]]) -> float:
    """Squared Frobenius norm of Σ w·B·A: Σ (BᵀB ∘ AAᵀ) of the stacked factors."""
    down = torch.cat([weight * a for weight, a, _ in parts])
    up = torch.cat([b for _, _, b in parts], dim=1)
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0))
