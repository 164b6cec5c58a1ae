"""A low-rank adapter out of two models: the best approximation of each change, read from files tensor by tensor."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from peftrun.adapters.merge import streaming
from peftrun.errors import AdapterError
from peftrun.io.safetensors_stream import StoredTensor

EXACT_UP_TO = 1024  # the shorter side of a matrix whose singular values are computed all
OVERSAMPLING, POWER_ITERATIONS = 16, 8  # of the randomised ones (Halko, Martinsson, Tropp 2011, arXiv:0909.4061)


@dataclass
class _TensorChanges:
    """Tensors of the base and of the tuned model, by the names of parameters; which of the changed ones are covered."""

    before: dict[str, StoredTensor]
    after: dict[str, StoredTensor]

    def change(self, key: str) -> torch.Tensor:
        return self.after[key].read_float() - self.before[key].read_float()

    def distinct(self) -> list[str]:
        """Names, one for tensors that are tied in both."""
        pairs = {(id(self.before[key]), id(self.after[key])): key for key in reversed(self.before)}
        return list(reversed(pairs.values()))


def fill_from_change(net: Any, name: str, base: Path, tuned: Path) -> dict[str, Any]:
    """Sets the fresh adapter `name` of `net` to the change from `base` to `tuned`, as well as its ranks can.

    Returns: residual: ‖ΔW − scaling·B·A‖ / ‖ΔW‖ over all adapted modules; residuals: of each; left_out: tensors that
        changed and are no part of the adapter, with their share of the whole squared change.
    Raises: AdapterError: the two are not of one architecture, or do not differ.
    """
    models = _TensorChanges(*(streaming.map_stored_tensors(net.get_base_model(), folder) for folder in (base, tuned)))
    _check_same_architecture(models, base, tuned)
    covered: set[str] = set()
    each: dict[str, tuple[float, float]] = {}
    for path, module in net.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            each[path] = _fit_low_rank(module, name, models.change(f"{path}.weight"))
            covered.add(f"{path}.weight")
        elif isinstance(module, ModulesToSaveWrapper):
            covered |= _copy_saved_module(module.modules_to_save[name], path, models)
    squares = {key: float(models.change(key).square().sum()) for key in models.distinct()}
    whole = sum(squares.values())
    if whole == 0.0:
        raise AdapterError(
            f"action.tuned={tuned}: equals the base, so there is nothing to extract; name the fine-tuned model"
        )
    missed, changed = (sum(pair[number] for pair in each.values()) for number in (0, 1))
    return {
        "residual": math.sqrt(missed / changed) if changed else 0.0,
        "residuals": {path: math.sqrt(off / all_) if all_ else 0.0 for path, (off, all_) in each.items()},
        "left_out": {key: value / whole for key, value in squares.items() if value and key not in covered},
    }


def _check_same_architecture(models: _TensorChanges, base: Path, tuned: Path) -> None:
    odd = sorted(models.before.keys() ^ models.after.keys())
    odd += [
        key
        for key in models.before.keys() & models.after.keys()
        if models.before[key].entry.shape != models.after[key].entry.shape
    ]
    odd.sort()
    if odd:
        raise AdapterError(
            f"action.tuned={tuned}: is not a fine-tuned {base.name}: {len(odd)} tensors are in one only or of another shape "
            f"(first: {odd[0]}); choose the base it started from"
        )


def _fit_low_rank(module: Any, name: str, change: torch.Tensor) -> tuple[float, float]:
    """Squared norms of what is left and of the change. Best by Eckart and Young: the largest singular values are kept."""
    embedding = name in module.lora_embedding_A
    wanted = change.T if embedding or getattr(module, "fan_in_fan_out", False) else change  # (out, in)
    wanted = wanted.flatten(1)
    down, up = (
        (module.lora_embedding_A[name], module.lora_embedding_B[name])
        if embedding
        else (module.lora_A[name].weight, module.lora_B[name].weight)
    )
    left, values, right = _truncated_svd(wanted, down.shape[0])
    root = values.sqrt()
    with torch.no_grad():
        down.zero_()[: len(root)] = (root[:, None] * right).to(down.dtype).reshape(len(root), *down.shape[1:])
        up.zero_()[:, : len(root)] = (
            (left * root / module.scaling[name]).to(up.dtype).reshape(up.shape[0], len(root), *up.shape[2:])
        )
        made = module.scaling[name] * (up.flatten(1).float() @ down.flatten(1).float())
    return float((wanted.to(made.device) - made).square().sum()), float(wanted.square().sum())


def _truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, S, Vᵀ of the `rank` largest singular values, or of all there are."""
    if min(matrix.shape) <= max(EXACT_UP_TO, rank + OVERSAMPLING):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, right = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
        right = right.T
    return left[:, :rank], values[:rank], right[:rank]


def _copy_saved_module(module: Any, path: str, models: _TensorChanges) -> set[str]:
    """Copies a module that is saved in full; the names of its tensors."""
    taken = set()
    for key, parameter in module.named_parameters():
        if f"{path}.{key}" in models.after:
            parameter.data.copy_(models.after[f"{path}.{key}"].read_float())
            taken.add(f"{path}.{key}")
    return taken
