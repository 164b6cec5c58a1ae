"""Tensors of an adapter's file other than LoRA factors: modules trained in full, biases, token rows, magnitudes, the base model's embeddings.

They are read in pieces, since an embedding may be larger than memory. Light.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts import delta_weights
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.delta_weights import DTYPES, FACTOR, AdapterDeltas
from peftrun.io import safetensors_header
from peftrun.io.safetensors_header import TensorEntry

PREFIX = "base_model.model."  # of every tensor that PEFT saves
PIECE = 1 << 22  # values read at once, 32 MiB in float64
TOKEN_ROWS = "trainable_tokens_delta"
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|shared)\.(base_layer\.)?weight$"
)


def list_extra_tensors(adapter: AdapterRef, weights: AdapterDeltas) -> dict[str, TensorEntry]:
    """Name in the model → every tensor of the file that is in none of the measured LoRA pairs."""
    entries = safetensors_header.read_header(adapter.weights)
    return {
        entry.name.removeprefix(PREFIX): entry
        for entry in entries
        if not ((factor := FACTOR.fullmatch(entry.name)) and factor["module"] in weights.found)
    }


def list_extra_names(adapter: AdapterRef, weights: AdapterDeltas) -> set[str]:
    """Names of those tensors without unpaired factors, which `weights.unmeasured` lists already."""
    return {
        name for name in list_extra_tensors(adapter, weights) if "*" in weights.unmeasured or not FACTOR.fullmatch(name)
    }


def describe_extra_tensors(adapter: AdapterRef, weights: AdapterDeltas) -> dict[str, dict[str, Any]]:
    """Kind, shape and Frobenius norm of each of those tensors; the norm is None for an unsupported dtype or numbers that are not finite."""
    return {
        name: {
            "kind": _classify_tensor(name, adapter.config),
            "shape": list(entry.shape),
            "norm": _compute_norm(adapter.weights, entry),
        }
        for name, entry in list_extra_tensors(adapter, weights).items()
    }


def compare_extra_tensors(
    adapters: tuple[AdapterRef, AdapterRef], weights: tuple[AdapterDeltas, AdapterDeltas]
) -> dict[str, dict[str, Any] | str]:
    """For each of those tensors that both adapters have: norms, distance and cosine, or why they cannot be compared."""
    first, second = (list_extra_tensors(adapter, deltas) for adapter, deltas in zip(adapters, weights, strict=True))
    files = tuple(adapter.weights for adapter in adapters)
    config_a, config_b = (adapter.config for adapter in adapters)
    same_tokens = all(config_a.get(key) == config_b.get(key) for key in ("trainable_token_indices", "token_indices"))
    return {
        name: "its rows are of other tokens"
        if TOKEN_ROWS in name and not same_tokens
        else _compare_tensors(files, (entry, second[name]))
        for name, entry in first.items()
        if name in second
    }


def _classify_tensor(name: str, config: dict[str, Any]) -> str:
    if TOKEN_ROWS in name:
        return "token rows"
    if any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or []):
        return "trained in full"
    if name.endswith(".bias") and ".lora_" not in name:
        return "bias"
    if ".base_layer." in name or EMBEDDINGS.search(name):
        return "embedding of the base"
    return "magnitude" if "lora_magnitude_vector" in name else "parameter of the method"


def _compute_norm(file: Path, entry: TensorEntry) -> float | None:
    if entry.dtype not in DTYPES:
        return None
    square = sum(float(np.square(piece).sum()) for piece in _iter_values(file, entry))
    return math.sqrt(square) if math.isfinite(square) else None


def _compare_tensors(files: tuple[Path, ...], entries: tuple[TensorEntry, TensorEntry]) -> dict[str, Any] | str:
    first, second = entries
    if first.shape != second.shape:
        return f"is {_format_shape(first)} in one, {_format_shape(second)} in the other"
    unsupported = {first.dtype, second.dtype} - DTYPES.keys()
    if unsupported:
        return f"{min(unsupported)} is not read here"
    sums = np.zeros(4)  # ‖a‖², ‖b‖², ⟨a, b⟩, ‖a − b‖², accumulated piece by piece
    for a, b in zip(_iter_values(files[0], first), _iter_values(files[1], second), strict=True):
        sums += (np.square(a).sum(), np.square(b).sum(), (a * b).sum(), np.square(a - b).sum())
    if not np.isfinite(sums).all():
        return "holds NaN or infinity"
    square_a, square_b, inner, distance = (float(value) for value in sums)
    figures = delta_weights.compute_distances(math.sqrt(square_a), math.sqrt(square_b), inner, math.sqrt(distance))
    return {"shape": list(first.shape), "inner": inner, **figures}


def _format_shape(entry: TensorEntry) -> str:
    return "×".join(map(str, entry.shape))


def _iter_values(file: Path, entry: TensorEntry) -> Iterator[np.ndarray]:
    """The tensor's values in float64, flat, in pieces (PIECE,). Raises: ArtifactError: its byte range does not fit its shape."""
    delta_weights.check_byte_range(file, entry)
    size = math.prod(entry.shape)
    width = (entry.end - entry.begin) // max(1, size)  # bytes of a value
    for begin in range(0, size, PIECE):
        end = min(size, begin + PIECE)
        piece = TensorEntry(
            entry.name, entry.dtype, (end - begin,), entry.begin + begin * width, entry.begin + end * width
        )
        yield delta_weights.read_tensor(file, piece)
