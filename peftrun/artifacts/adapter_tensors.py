"""What an adapter's file holds beside pairs of LoRA factors: modules trained in full, biases, token rows, magnitudes, embeddings of the base.

They are read piece by piece, for an embedding may be larger than memory. Light.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peftrun.artifacts import delta_weights
from peftrun.artifacts.delta_weights import DTYPES, FACTOR, AdapterDeltas
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json
from peftrun.io.safetensors_header import TensorEntry

PREFIX = "base_model.model."
PIECE = 1 << 22  # values
TOKEN_ROWS = "trainable_tokens_delta"
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|shared)\.(base_layer\.)?weight$"
)


def list_extra_tensors(folder: Path, weights: AdapterDeltas) -> dict[str, TensorEntry]:
    """Every tensor of the file that is in none of the measured pairs, by its name in the model."""
    entries = safetensors_header.read_header(folder / ADAPTER_WEIGHTS)
    return {
        entry.name.removeprefix(PREFIX): entry for entry in entries if _parse_module(entry.name) not in weights.found
    }


def list_extra_names(folder: Path, weights: AdapterDeltas) -> set[str]:
    """Names of those tensors, but for factors that are no pair: of these it is said that they cannot be measured."""
    return {
        name for name in list_extra_tensors(folder, weights) if "*" in weights.unmeasured or not FACTOR.fullmatch(name)
    }


def describe_extra_tensors(folder: Path, weights: AdapterDeltas) -> dict[str, dict[str, Any]]:
    """Kind, shape and Frobenius norm of each of those tensors; the norm is None where its numbers are not read here or not finite."""
    config, file = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    return {
        name: {"kind": _classify_tensor(name, config), "shape": list(entry.shape), "norm": _compute_norm(file, entry)}
        for name, entry in list_extra_tensors(folder, weights).items()
    }


def compare_extra_tensors(
    folders: tuple[Path, Path], weights: tuple[AdapterDeltas, AdapterDeltas]
) -> dict[str, dict[str, Any] | str]:
    """For each of those tensors that both adapters have, their norms, distance and cosine, or why they cannot be compared."""
    one, other = (list_extra_tensors(folder, found) for folder, found in zip(folders, weights, strict=True))
    files = tuple(folder / ADAPTER_WEIGHTS for folder in folders)
    reason = _check_same_tokens(*(read_json(folder / ADAPTER_CONFIG) for folder in folders))
    return {
        name: reason if reason and TOKEN_ROWS in name else _compare_tensors(files, (entry, other[name]))
        for name, entry in one.items()
        if name in other
    }


def _parse_module(name: str) -> str | None:
    match = FACTOR.fullmatch(name)
    return match["module"] if match else None


def _classify_tensor(name: str, config: dict[str, Any]) -> str:
    whole = config.get("modules_to_save") or []
    if TOKEN_ROWS in name:
        return "token rows"
    if any(f".{module}." in f".{name}" for module in whole):
        return "trained in full"
    if name.endswith(".bias") and ".lora_" not in name:
        return "bias"
    if ".base_layer." in name or EMBEDDINGS.search(name):
        return "embedding of the base"
    return "magnitude" if "lora_magnitude_vector" in name else "parameter of the method"


def _check_same_tokens(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    keys = ("trainable_token_indices", "token_indices")
    return None if all(one.get(key) == other.get(key) for key in keys) else "its rows are of other tokens"


def _compute_norm(file: Path, entry: TensorEntry) -> float | None:
    if entry.dtype not in DTYPES:
        return None
    square = sum(float(np.square(piece).sum()) for piece in _iter_values(file, entry))
    return math.sqrt(square) if math.isfinite(square) else None


def _compare_tensors(files: tuple[Path, ...], entries: tuple[TensorEntry, TensorEntry]) -> dict[str, Any] | str:
    one, other = entries
    if one.shape != other.shape:
        return f"is {_format_shape(one)} in one, {_format_shape(other)} in the other"
    unread = {one.dtype, other.dtype} - DTYPES.keys()
    if unread:
        return f"{min(unread)} is not read here"
    sums = np.zeros(4)
    for a, b in zip(_iter_values(files[0], one), _iter_values(files[1], other), strict=True):
        sums += (np.square(a).sum(), np.square(b).sum(), (a * b).sum(), np.square(a - b).sum())
    if not np.isfinite(sums).all():
        return "holds NaN or infinity"
    square_a, square_b, inner, distance = (float(value) for value in sums)
    found = delta_weights.compute_distances(math.sqrt(square_a), math.sqrt(square_b), inner, math.sqrt(distance))
    return {"shape": list(one.shape), "inner": inner, **found}


def _format_shape(entry: TensorEntry) -> str:
    return "×".join(map(str, entry.shape))


def _iter_values(file: Path, entry: TensorEntry) -> Iterator[np.ndarray]:
    """The tensor's values in float64, in order. Raises: ArtifactError: its byte range is not that of its shape."""
    delta_weights.check_byte_range(file, entry)
    size, width = math.prod(entry.shape), (entry.end - entry.begin) // max(1, math.prod(entry.shape))
    for begin in range(0, size, PIECE):
        end = min(size, begin + PIECE)
        part = TensorEntry(
            entry.name, entry.dtype, (end - begin,), entry.begin + begin * width, entry.begin + end * width
        )
        yield delta_weights.read_tensor(file, part)
