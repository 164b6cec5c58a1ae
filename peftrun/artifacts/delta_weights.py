"""What an adapter's weights say, read from its file with numpy alone: how large ΔW is, and how two adapters differ.

ΔW = scaling·B·A is never built: its norm, and inner products of two, are sums over r×r Gram matrices,
⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂ ∘ A₁A₂ᵀ).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.errors import AdapterError, ArtifactError
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json
from peftrun.io.safetensors_header import TensorEntry

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<part>[AB])(?:\.weight)?")
UNMEASURABLE_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")  # flags under which ΔW is no plain scaling·B·A
Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class LowRankPair:
    """The two factors of one module, still on disk: A is (rank, in), B is (out, rank)."""

    file: Path
    a: TensorEntry
    b: TensorEntry
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def read_factors(self) -> Factors:
        """A and scaling·B in float64, kernels of convolutions flattened."""
        return read_tensor(self.file, self.a).reshape(self.rank, -1), self.scaling * _flatten_b(
            read_tensor(self.file, self.b)
        )


@dataclass
class AdapterDeltas:
    """The LoRA pairs of one adapter by module, and why other modules (or `*`: all) cannot be measured."""

    found: dict[str, LowRankPair] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


def read_tensor(file: Path, entry: TensorEntry) -> np.ndarray:
    """One tensor in float64, read through a memory map.

    Raises: ArtifactError: its dtype is none of `DTYPES`, or its byte range is not that of its shape.
    """
    check_byte_range(file, entry)
    kind = np.dtype(DTYPES[entry.dtype])
    if not math.prod(entry.shape):
        return np.zeros(entry.shape)
    raw = np.memmap(file, dtype=kind, mode="r", offset=entry.begin, shape=entry.shape)
    return (raw.astype(np.uint32) << 16).view(np.float32).astype(float) if entry.dtype == "BF16" else raw.astype(float)


def check_byte_range(file: Path, entry: TensorEntry) -> None:
    """Raises: ArtifactError: the tensor's dtype is none of `DTYPES`, or its byte range is not that of its shape."""
    if entry.dtype not in DTYPES:
        raise ArtifactError(f"{file}: {entry.name} is {entry.dtype}; save the adapter again in float32")
    if entry.end - entry.begin != math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize:
        raise ArtifactError(f"{file}: {entry.name} has {entry.end - entry.begin} bytes for {entry.shape}; restore it")


def read_deltas(folder: Path) -> AdapterDeltas:
    """The LoRA pairs in an adapter folder, each with the scaling that PEFT would give it.

    Raises: AdapterError: the config lacks a number. ArtifactError: a file is torn.
    """
    config, file = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    refused = _why_unmeasurable(config)
    if refused:
        return AdapterDeltas(unmeasured={"*": refused})
    weights = AdapterDeltas()
    for module, parts in sorted(_group_by_module(safetensors_header.read_header(file)).items()):
        reason = _find_pair_fault(file, parts, _get_rank(config, module, folder))
        if reason:
            weights.unmeasured[module] = reason
        else:
            weights.found[module] = LowRankPair(file, parts["A"], parts["B"], compute_scaling(config, module, folder))
    return weights


def compute_scaling(config: dict[str, Any], module: str, folder: Path) -> float:
    """alpha/r of one module, alpha/√r under rsLoRA, `rank_pattern` and `alpha_pattern` honoured.

    Raises: AdapterError: the config lacks a number.
    """
    alpha = _get_pattern_value(config, "alpha_pattern", "lora_alpha", module, folder)
    rank = _get_rank(config, module, folder)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def find_nonfinite_tensor(folder: Path) -> str | None:
    """The first tensor of an adapter's file that holds NaN or infinity; None if all numbers are finite, or of a dtype that is not read here."""
    file = folder / ADAPTER_WEIGHTS
    read = (entry for entry in safetensors_header.read_header(file) if entry.dtype in DTYPES)
    return next((entry.name for entry in read if not np.isfinite(read_tensor(file, entry)).all()), None)


def compute_delta_norms(weights: AdapterDeltas) -> dict[str, float]:
    """Module → Frobenius norm of its ΔW."""
    return {
        module: math.sqrt(max(_inner_product(*[pair.read_factors()] * 2), 0.0))
        for module, pair in weights.found.items()
    }


def total_norm(values: Iterable[float]) -> float:
    """The norm of everything whose parts have these norms."""
    return math.sqrt(sum(value * value for value in values))


def compare_deltas(one: LowRankPair, other: LowRankPair) -> dict[str, Any] | str:
    """What two ΔW of one module have in common, or why they cannot be compared; ranks may differ.

    Overlaps are φ = ‖U₁ᵀU₂‖²_F / min(r₁, r₂) of the spaces that the columns of B, and the rows of A, span:
    0 for orthogonal spaces, 1 when one holds the other (Hu et al. 2021, arXiv:2106.09685, section 7.2).
    A number that is not defined, such as the cosine of an untrained adapter (ΔW = 0), is None.
    """
    (a1, b1), (a2, b2) = one.read_factors(), other.read_factors()
    if (b1.shape[0], a1.shape[1]) != (b2.shape[0], a2.shape[1]):
        return f"ΔW is {b1.shape[0]}×{a1.shape[1]} in one, {b2.shape[0]}×{a2.shape[1]} in the other"
    norm, norm_other, inner = (
        _inner_product(*sides) for sides in (((a1, b1),) * 2, ((a2, b2),) * 2, ((a1, b1), (a2, b2)))
    )
    return {
        "ranks": [one.rank, other.rank],
        "inner": inner,
        **compute_distances(
            math.sqrt(max(norm, 0.0)), math.sqrt(max(norm_other, 0.0)), inner, _compute_distance((a1, b1), (a2, b2))
        ),
        "overlap_B": compute_subspace_overlap(b1, b2),
        "overlap_A": compute_subspace_overlap(a1.T, a2.T),
    }


def compute_distances(norm_a: float, norm_b: float, inner: float, distance: float) -> dict[str, float | None]:
    """Norms and distance of two ΔW; the distance as a share of the larger norm; their cosine."""
    larger, product = max(norm_a, norm_b), norm_a * norm_b
    return {
        "norm_a": norm_a,
        "norm_b": norm_b,
        "distance": distance,
        "relative_distance": distance / larger if larger else None,
        "cosine": min(1.0, max(-1.0, inner / product)) if product else None,
    }


def compute_subspace_overlap(one: np.ndarray, other: np.ndarray) -> float | None:
    """φ of two column spaces, in 0…1; None when one of them is nothing but zero."""
    u, v = _orthonormal_basis(one), _orthonormal_basis(other)
    smaller = min(u.shape[1], v.shape[1])
    return min(1.0, float(np.sum((u.T @ v) ** 2)) / smaller) if smaller else None


def _orthonormal_basis(matrix: np.ndarray) -> np.ndarray:
    # QR, then the r×r triangle tells the directions that are there from those that are rounding.
    q, triangle = np.linalg.qr(matrix)
    u, sizes, _ = np.linalg.svd(triangle, full_matrices=False)
    floor = sizes.max(initial=0.0) * max(matrix.shape) * np.finfo(float).eps
    return q @ u[:, sizes > floor]


def _inner_product(one: Factors, other: Factors) -> float:
    (a1, b1), (a2, b2) = one, other
    return float(np.sum((b1.T @ b2) * (a1 @ a2.T)))


def _compute_distance(one: Factors, other: Factors) -> float:
    # ‖ΔW₁‖² + ‖ΔW₂‖² − 2⟨ΔW₁, ΔW₂⟩ loses half the digits when the two are close. The triangles of the stacked
    # factors are the roots of their Gram matrices, and lose none.
    (a1, b1), (a2, b2) = one, other
    if np.array_equal(a1, a2) and np.array_equal(b1, b2):
        return 0.0
    left, right = np.linalg.qr(np.hstack([b1, -b2]))[1], np.linalg.qr(np.vstack([a1, a2]).T)[1]
    return float(np.linalg.norm(left @ right.T))


def _flatten_b(b: np.ndarray) -> np.ndarray:
    return b.reshape(b.shape[0], b.shape[1])


def _why_unmeasurable(config: dict[str, Any]) -> str | None:
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')} has no LoRA pairs, so no ΔW = scaling·B·A"
    special = [key for key in UNMEASURABLE_VARIANTS if config.get(key)]
    return f"under {special[0]} ΔW is no plain scaling·B·A" if special else None


def _group_by_module(entries: list[TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in entries:
        if match := FACTOR.fullmatch(entry.name):
            found.setdefault(match["module"], {})[match["part"]] = entry
    return found


def _find_pair_fault(file: Path, parts: dict[str, TensorEntry], rank: int) -> str | None:
    missing = {"A", "B"} - parts.keys()
    if missing:
        return f"lora_{missing.pop()} is missing"
    a, b = parts["A"], parts["B"]
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or math.prod(b.shape[2:]) != 1:
        return f"lora_A {a.shape} and lora_B {b.shape} are no pair"
    if a.shape[0] != rank:  # the experts of `target_parameters` are stacked in one pair
        return f"lora_A has {a.shape[0]} rows, the config says rank {rank}"
    unread = {a.dtype, b.dtype} - DTYPES.keys()
    if unread:
        return f"{unread.pop()} is not read here"
    return None if all(np.isfinite(read_tensor(file, entry)).all() for entry in (a, b)) else "holds NaN or infinity"


def _get_rank(config: dict[str, Any], module: str, folder: Path) -> int:
    return int(_get_pattern_value(config, "rank_pattern", "r", module, folder))


def _get_pattern_value(config: dict[str, Any], patterns: str, key: str, module: str, folder: Path) -> float:
    """The first pattern that ends the module's name decides, as in peft.utils.other.get_pattern_key."""
    chosen = config.get(patterns) or {}
    try:
        value = next((v for k, v in chosen.items() if re.match(rf"(.*\.)?({k})$", module)), config.get(key))
    except (re.error, AttributeError) as error:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {patterns} holds no patterns ({error}); restore it") from error
    if not isinstance(value, int | float) or value <= 0:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {key} is {value!r} for {module}; restore it")
    return value
