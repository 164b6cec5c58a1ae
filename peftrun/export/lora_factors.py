"""LoRA factors of an adapter, rescaled and padded without changing ΔW. Light."""

from dataclasses import dataclass, replace

import numpy as np

from peftrun.artifacts import delta_weights
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.delta_weights import AdapterDeltas
from peftrun.errors import AdapterError


@dataclass(frozen=True)
class LoraFactors:
    """A (r, in) and B (out, r) of one module in float32, and their names in the file; ΔW = scaling·B·A (out, in)."""

    names: tuple[str, str]
    a: np.ndarray
    b: np.ndarray
    scaling: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.a.shape[0])


def read_factors(source: ExportSource) -> dict[str, LoraFactors]:
    """Module → its factors, with PEFT's scaling.

    Raises: AdapterError: a tensor is not a factor of a linear layer. ArtifactError: the file is damaged.
    """
    weights: AdapterDeltas = delta_weights.read_deltas(source.folder)
    for module, reason in weights.unmeasured.items():
        raise AdapterError(f"{source.folder}: {module}: {reason}; merge it instead (peftrun action=merge adapter=…)")
    return {
        module: LoraFactors(
            (pair.a.name, pair.b.name),
            delta_weights.read_tensor(pair.file, pair.a).astype(np.float32),
            delta_weights.read_tensor(pair.file, pair.b).astype(np.float32),
            pair.scaling,
        )
        for module, pair in weights.found.items()
    }


def rescale_factors(factors: LoraFactors, scaling: float) -> LoraFactors:
    """The same ΔW with another scaling: B is multiplied with the quotient."""
    if factors.scaling == scaling:
        return factors
    # In float64, so that B is rounded once.
    b = (factors.b.astype(np.float64) * (factors.scaling / scaling)).astype(np.float32)
    return replace(factors, b=b, scaling=scaling)


def pad_rank(factors: LoraFactors, rank: int) -> LoraFactors:
    """The same ΔW with a larger rank: A and B are padded with zeros."""
    extra = rank - factors.rank
    return replace(factors, a=np.pad(factors.a, ((0, extra), (0, 0))), b=np.pad(factors.b, ((0, 0), (0, extra))))
