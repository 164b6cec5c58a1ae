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
from peftrun.artifacts.delta_weights import DTYPES, FACTOR, Weights
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftrun.io import safetensors_header
from peftrun.io.atomic_files import read_json
from peftrun.io.safetensors_header import Entry

PREFIX = "base_model.model."
PIECE = 1 << 22  # values
TOKEN_ROWS = "trainable_tokens_delta"
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|shared)\.(base_layer\.)?weight$"
)


def beside_pairs(folder: Path, weights: Weights) -> dict[str, Entry]:
    """Every tensor of the file that is in none of the measured pairs, by its name in the model."""
    entries = safetensors_header.entries(folder / ADAPTER_WEIGHTS)
    return {entry.name.removeprefix(PREFIX): entry for entry in entries if _module(entry.name) not in weights.found}


def names_beside_pairs(folder: Path, weights: Weights) -> set[str]:
    """Names of those tensors, but for factors that are no pair: of these it is said that they cannot be measured."""
    return {name for name in beside_pairs(folder, weights) if "*" in weights.unmeasured or not FACTOR.fullmatch(name)}


def describe(folder: Path, weights: Weights) -> dict[str, dict[str, Any]]:
    """Kind, shape and Frobenius norm of each of those tensors; the norm is None where its numbers are not read here or not finite."""
    config, file = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    return {
        name: {"kind": _kind(name, config), "shape": list(entry.shape), "norm": _norm(file, entry)}
        for name, entry in beside_pairs(folder, weights).items()
    }


def comparisons(folders: tuple[Path, Path], weights: tuple[Weights, Weights]) -> dict[str, dict[str, Any] | str]:
    """For each of those tensors that both adapters have, their norms, distance and cosine, or why they cannot be compared."""
    one, other = (beside_pairs(folder, found) for folder, found in zip(folders, weights, strict=True))
    files = tuple(folder / ADAPTER_WEIGHTS for folder in folders)
    reason = _other_tokens(*(read_json(folder / ADAPTER_CONFIG) for folder in folders))
    return {
        name: reason if reason and TOKEN_ROWS in name else _comparison(files, (entry, other[name]))
        for name, entry in one.items()
        if name in other
    }


def _module(name: str) -> str | None:
    match = FACTOR.fullmatch(name)
    return match["module"] if match else None


def _kind(name: str, config: dict[str, Any]) -> str:
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


def _other_tokens(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    keys = ("trainable_token_indices", "token_indices")
    return None if all(one.get(key) == other.get(key) for key in keys) else "its rows are of other tokens"


def _norm(file: Path, entry: Entry) -> float | None:
    if entry.dtype not in DTYPES:
        return None
    square = sum(float(np.square(piece).sum()) for piece in _pieces(file, entry))
    return math.sqrt(square) if math.isfinite(square) else None


def _comparison(files: tuple[Path, ...], entries: tuple[Entry, Entry]) -> dict[str, Any] | str:
    one, other = entries
    if one.shape != other.shape:
        return f"is {_shape(one)} in one, {_shape(other)} in the other"
    unread = {one.dtype, other.dtype} - DTYPES.keys()
    if unread:
        return f"{min(unread)} is not read here"
    sums = np.zeros(4)
    for a, b in zip(_pieces(files[0], one), _pieces(files[1], other), strict=True):
        sums += (np.square(a).sum(), np.square(b).sum(), (a * b).sum(), np.square(a - b).sum())
    if not np.isfinite(sums).all():
        return "holds NaN or infinity"
    square_a, square_b, inner, distance = (float(value) for value in sums)
    found = delta_weights.distances(math.sqrt(square_a), math.sqrt(square_b), inner, math.sqrt(distance))
    return {"shape": list(one.shape), "inner": inner, **found}


def _shape(entry: Entry) -> str:
    return "×".join(map(str, entry.shape))


def _pieces(file: Path, entry: Entry) -> Iterator[np.ndarray]:
    """The tensor's values in float64, in order. Raises: ArtifactError: its byte range is not that of its shape."""
    delta_weights.check_range(file, entry)
    size, width = math.prod(entry.shape), (entry.end - entry.begin) // max(1, math.prod(entry.shape))
    for begin in range(0, size, PIECE):
        end = min(size, begin + PIECE)
        part = Entry(entry.name, entry.dtype, (end - begin,), entry.begin + begin * width, entry.begin + end * width)
        yield delta_weights.tensor(file, part)
