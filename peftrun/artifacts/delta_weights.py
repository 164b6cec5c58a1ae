"""The size of an adapter's ΔW, and the distance between those of two adapters, from their files with numpy alone.

ΔW = scaling·B·A (out, in) is never computed: its norm, and inner products of two, are sums over r×r Gram matrices,
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

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: read as its bits
FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<part>[AB])(?:\.weight)?")
UNMEASURABLE_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")  # with these ΔW is not scaling·B·A
Factors = tuple[np.ndarray, np.ndarray]  # A (r, in) and scaling·B (out, r)


@dataclass(frozen=True)
class LowRankPair:
    """The two factors of one module, not yet read: A is (r, in), B is (out, r); for a convolution with the kernel behind."""

    file: Path
    a: TensorEntry
    b: TensorEntry
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def read_factors(self) -> Factors:
        """A (r, in) and scaling·B (out, r) in float64; of a convolution A is (r, in·kernel), and B's kernel is 1×1."""
        a, b = read_tensor(self.file, self.a), read_tensor(self.file, self.b)
        return a.reshape(self.rank, -1), self.scaling * b.reshape(b.shape[0], b.shape[1])


@dataclass
class AdapterDeltas:
    """Module → LoRA pair of one adapter; module (or `*`: all) → why it cannot be measured."""

    found: dict[str, LowRankPair] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


def read_tensor(file: Path, entry: TensorEntry) -> np.ndarray:
    """One tensor in float64, read through a memory map.

    Raises: ArtifactError: its dtype is none of `DTYPES`, or its byte range does not fit its shape.
    """
    check_byte_range(file, entry)
    if not math.prod(entry.shape):  # memmap refuses an empty range
        return np.zeros(entry.shape)
    raw = np.memmap(file, dtype=DTYPES[entry.dtype], mode="r", offset=entry.begin, shape=entry.shape)
    if entry.dtype == "BF16":  # bfloat16 is the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(float)
    return raw.astype(float)


def check_byte_range(file: Path, entry: TensorEntry) -> None:
    """Raises: ArtifactError: the tensor's dtype is none of `DTYPES`, or its byte range does not fit its shape."""
    if entry.dtype not in DTYPES:
        raise ArtifactError(f"{file}: {entry.name} is {entry.dtype}; save the adapter again in float32")
    if entry.end - entry.begin != math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize:
        raise ArtifactError(f"{file}: {entry.name} has {entry.end - entry.begin} bytes for {entry.shape}; restore it")


def read_deltas(folder: Path) -> AdapterDeltas:
    """The LoRA pairs in an adapter folder, each with the scaling that PEFT would compute.

    Raises: AdapterError: the config lacks a number. ArtifactError: a file is torn.
    """
    config, file = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    if config.get("peft_type") != "LORA":
        reason = f"peft_type {config.get('peft_type')} has no LoRA pairs, so no ΔW = scaling·B·A"
        return AdapterDeltas(unmeasured={"*": reason})
    variants = [key for key in UNMEASURABLE_VARIANTS if config.get(key)]
    if variants:
        return AdapterDeltas(unmeasured={"*": f"under {variants[0]} ΔW is no plain scaling·B·A"})
    pairs: dict[str, dict[str, TensorEntry]] = {}
    for entry in safetensors_header.read_header(file):
        if match := FACTOR.fullmatch(entry.name):
            pairs.setdefault(match["module"], {})[match["part"]] = entry
    weights = AdapterDeltas()
    for module, factors in sorted(pairs.items()):
        fault = _find_pair_fault(file, factors, _get_rank(config, module, folder))
        if fault:
            weights.unmeasured[module] = fault
        else:
            scaling = compute_scaling(config, module, folder)
            weights.found[module] = LowRankPair(file, factors["A"], factors["B"], scaling)
    return weights


def compute_scaling(config: dict[str, Any], module: str, folder: Path) -> float:
    """alpha/r of one module, alpha/√r with rsLoRA; `rank_pattern` and `alpha_pattern` are respected.

    Raises: AdapterError: the config lacks a number.
    """
    alpha = _get_pattern_value(config, "alpha_pattern", "lora_alpha", module, folder)
    rank = _get_rank(config, module, folder)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def find_nonfinite_tensor(folder: Path) -> str | None:
    """Name of the first tensor of an adapter's file that has NaN or infinity, or None. Tensors of unsupported dtypes are skipped."""
    file = folder / ADAPTER_WEIGHTS
    entries = (entry for entry in safetensors_header.read_header(file) if entry.dtype in DTYPES)
    return next((entry.name for entry in entries if not np.isfinite(read_tensor(file, entry)).all()), None)


def compute_delta_norms(weights: AdapterDeltas) -> dict[str, float]:
    """Module → Frobenius norm of its ΔW."""
    # max: rounding can make the norm of a tiny ΔW slightly negative
    return {
        module: math.sqrt(max(_inner_product(*[pair.read_factors()] * 2), 0.0))
        for module, pair in weights.found.items()
    }


def total_norm(values: Iterable[float]) -> float:
    """Frobenius norm over all modules, from the norm of each."""
    return math.sqrt(sum(value * value for value in values))


def compare_deltas(pair_a: LowRankPair, pair_b: LowRankPair) -> dict[str, Any] | str:
    """Norms, distance and overlaps of two ΔW of one module, or why they cannot be compared. Ranks may differ.

    Overlaps are φ = ‖U₁ᵀU₂‖²_F / min(r₁, r₂) of the spaces that the columns of B, and the rows of A, span:
    0 for orthogonal spaces, 1 when one contains the other (Hu et al. 2021, arXiv:2106.09685, section 7.2).
    A number that is not defined, such as the cosine of an untrained adapter (ΔW = 0), is None.
    """
    first, second = pair_a.read_factors(), pair_b.read_factors()
    (a1, b1), (a2, b2) = first, second
    if (b1.shape[0], a1.shape[1]) != (b2.shape[0], a2.shape[1]):
        return f"ΔW is {b1.shape[0]}×{a1.shape[1]} in one, {b2.shape[0]}×{a2.shape[1]} in the other"
    square1, square2 = _inner_product(first, first), _inner_product(second, second)
    norm1, norm2 = math.sqrt(max(square1, 0.0)), math.sqrt(max(square2, 0.0))
    inner = _inner_product(first, second)
    return {
        "ranks": [pair_a.rank, pair_b.rank],
        "inner": inner,
        **compute_distances(norm1, norm2, inner, _compute_distance(first, second)),
        "overlap_B": compute_subspace_overlap(b1, b2),
        "overlap_A": compute_subspace_overlap(a1.T, a2.T),
    }


def compute_distances(norm_a: float, norm_b: float, inner: float, distance: float) -> dict[str, float | None]:
    """Norms, distance, distance relative to the larger norm, and cosine of two ΔW; None where a norm is 0."""
    larger, product = max(norm_a, norm_b), norm_a * norm_b
    return {
        "norm_a": norm_a,
        "norm_b": norm_b,
        "distance": distance,
        "relative_distance": distance / larger if larger else None,
        "cosine": min(1.0, max(-1.0, inner / product)) if product else None,
    }


def compute_subspace_overlap(first: np.ndarray, second: np.ndarray) -> float | None:
    """φ of two column spaces, from 0 to 1; None if a matrix is all zeros."""
    u, v = _orthonormal_basis(first), _orthonormal_basis(second)  # (n, rank₁), (n, rank₂)
    smaller = min(u.shape[1], v.shape[1])
    return min(1.0, float(np.sum((u.T @ v) ** 2)) / smaller) if smaller else None


def _orthonormal_basis(matrix: np.ndarray) -> np.ndarray:
    # QR of (n, r), then an SVD of the small (r, r) triangle, which separates real directions from rounding.
    q, triangle = np.linalg.qr(matrix)
    u, singular_values, _ = np.linalg.svd(triangle, full_matrices=False)
    threshold = singular_values.max(initial=0.0) * max(matrix.shape) * np.finfo(float).eps
    return q @ u[:, singular_values > threshold]


def _inner_product(first: Factors, second: Factors) -> float:
    (a1, b1), (a2, b2) = first, second
    return float(np.sum((b1.T @ b2) * (a1 @ a2.T)))  # (r₁, r₂) each


def _compute_distance(first: Factors, second: Factors) -> float:
    # ‖ΔW₁‖² + ‖ΔW₂‖² − 2⟨ΔW₁, ΔW₂⟩ loses half the digits when the two are close. The QR triangles of the stacked
    # factors are square roots of their Gram matrices, and lose none.
    (a1, b1), (a2, b2) = first, second
    if np.array_equal(a1, a2) and np.array_equal(b1, b2):
        return 0.0
    left = np.linalg.qr(np.hstack([b1, -b2]))[1]  # of (out, r₁ + r₂): (r₁ + r₂, r₁ + r₂)
    right = np.linalg.qr(np.vstack([a1, a2]).T)[1]  # of (in, r₁ + r₂): (r₁ + r₂, r₁ + r₂)
    return float(np.linalg.norm(left @ right.T))


def _find_pair_fault(file: Path, factors: dict[str, TensorEntry], rank: int) -> str | None:
    missing = {"A", "B"} - factors.keys()
    if missing:
        return f"lora_{missing.pop()} is missing"
    a, b = factors["A"], factors["B"]
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or math.prod(b.shape[2:]) != 1:
        return f"lora_A {a.shape} and lora_B {b.shape} are no pair"
    if a.shape[0] != rank:  # PEFT stacks the experts of `target_parameters` in one pair
        return f"lora_A has {a.shape[0]} rows, the config says rank {rank}"
    unsupported = {a.dtype, b.dtype} - DTYPES.keys()
    if unsupported:
        return f"{unsupported.pop()} is not read here"
    return None if all(np.isfinite(read_tensor(file, entry)).all() for entry in (a, b)) else "holds NaN or infinity"


def _get_rank(config: dict[str, Any], module: str, folder: Path) -> int:
    return int(_get_pattern_value(config, "rank_pattern", "r", module, folder))


def _get_pattern_value(config: dict[str, Any], patterns: str, key: str, module: str, folder: Path) -> float:
    """The value of the first pattern that matches the end of the module's name, as in peft.utils.other.get_pattern_key."""
    by_pattern = config.get(patterns) or {}
    try:
        value = next((v for k, v in by_pattern.items() if re.match(rf"(.*\.)?({k})$", module)), config.get(key))
    except (re.error, AttributeError) as error:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {patterns} holds no patterns ({error}); restore it") from error
    if not isinstance(value, int | float) or value <= 0:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {key} is {value!r} for {module}; restore it")
    return value
