"""Extracts a LoRA adapter from two models: the best low-rank approximation of each change, read from the files tensor by tensor."""

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

EXACT_UP_TO = 1024  # shorter side of a matrix up to which a full SVD is computed
OVERSAMPLING, POWER_ITERATIONS = 16, 8  # of the randomized SVD (Halko, Martinsson, Tropp 2011, arXiv:0909.4061)


@dataclass
class _TensorChanges:
    """Parameter name → tensor of the base model, and of the fine-tuned model."""

    before: dict[str, StoredTensor]
    after: dict[str, StoredTensor]

    def read_change(self, key: str) -> torch.Tensor:
        """ΔW of one tensor in float32."""
        return self.after[key].read_float() - self.before[key].read_float()

    def list_distinct(self) -> list[str]:
        """Parameter names, the first one of tensors that are tied in both models."""
        pairs = {(id(self.before[key]), id(self.after[key])): key for key in reversed(self.before)}
        return list(reversed(pairs.values()))


def fill_from_change(net: Any, name: str, base: Path, tuned: Path) -> dict[str, Any]:
    """Sets the fresh adapter `name` of `net` to the change from `base` to `tuned`, as closely as its ranks allow.

    Returns: residual: ‖ΔW − scaling·B·A‖ / ‖ΔW‖ over all adapted modules; residuals: of each; left_out: tensors that changed but are not
        part of the adapter, with their share of the total squared change.
    Raises: AdapterError: the two models have different architectures, or are equal.
    """
    models = _TensorChanges(*(streaming.map_stored_tensors(net.get_base_model(), folder) for folder in (base, tuned)))
    _check_same_architecture(models, base, tuned)
    covered: set[str] = set()
    squares: dict[str, tuple[float, float]] = {}  # module → squared norms of its residual and of its change
    for path, module in net.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            squares[path] = _fit_low_rank(module, name, models.read_change(f"{path}.weight"))
            covered.add(f"{path}.weight")
        elif isinstance(module, ModulesToSaveWrapper):  # saved in full, so the fine-tuned values are copied
            for key, parameter in module.modules_to_save[name].named_parameters():
                if f"{path}.{key}" in models.after:
                    parameter.data.copy_(models.after[f"{path}.{key}"].read_float())
                    covered.add(f"{path}.{key}")
    changes = {key: float(models.read_change(key).square().sum()) for key in models.list_distinct()}
    total = sum(changes.values())
    if total == 0.0:
        raise AdapterError(
            f"action.finetuned_model={tuned}: equals the base, so there is nothing to extract; name the fine-tuned model"
        )
    residual, change = (sum(pair[index] for pair in squares.values()) for index in (0, 1))
    return {
        "residual": math.sqrt(residual / change) if change else 0.0,
        "residuals": {path: math.sqrt(left / full) if full else 0.0 for path, (left, full) in squares.items()},
        "left_out": {key: value / total for key, value in changes.items() if value and key not in covered},
    }


def _check_same_architecture(models: _TensorChanges, base: Path, tuned: Path) -> None:
    different = models.before.keys() ^ models.after.keys()
    different |= {
        key
        for key in models.before.keys() & models.after.keys()
        if models.before[key].entry.shape != models.after[key].entry.shape
    }
    if different:
        raise AdapterError(
            f"action.finetuned_model={tuned}: is not a fine-tuned {base.name}: {len(different)} tensors are in one only or of another shape "
            f"(first: {min(different)}); choose the base it started from"
        )


def _fit_low_rank(module: Any, name: str, change: torch.Tensor) -> tuple[float, float]:
    """Sets A and B to the truncated SVD of `change`, the best approximation of their rank (Eckart and Young).

    Returns: squared norms of the residual and of the change.
    """
    if name in module.lora_embedding_A:  # the weight is (vocabulary, hidden), A (r, vocabulary), B (hidden, r)
        a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
        target = change.T
    else:  # Conv1D stores its weight as (in, out)
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        target = change.T if getattr(module, "fan_in_fan_out", False) else change
    target = target.flatten(1)  # (out, in), of a convolution (out, in·kernel)
    if min(target.shape) <= max(EXACT_UP_TO, a.shape[0] + OVERSAMPLING):
        u, s, vh = torch.linalg.svd(target, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(target, q=a.shape[0] + OVERSAMPLING, niter=POWER_ITERATIONS)
        vh = v.T
    rank = min(a.shape[0], len(s))  # less than r if the matrix is smaller; the rest of A and B stays zero
    u, root, vh = u[:, :rank], s[:rank].sqrt(), vh[:rank]  # (out, rank), (rank,), (rank, in)
    with torch.no_grad():
        a.zero_()[:rank] = (root[:, None] * vh).to(a.dtype).reshape(rank, *a.shape[1:])
        b.zero_()[:, :rank] = (u * root / module.scaling[name]).to(b.dtype).reshape(b.shape[0], rank, *b.shape[2:])
        # the residual of what is stored, after rounding to the factors' dtype
        fitted = module.scaling[name] * (b.flatten(1).float() @ a.flatten(1).float())  # (out, in)
    return float((target.to(fitted.device) - fitted).square().sum()), float(target.square().sum())
