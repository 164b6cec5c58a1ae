"""Key-value caches of batches whose rows join and leave. Rows are padded on the left: keys and values are (B, heads, T, D)."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache


def create_cache() -> DynamicCache:
    """An empty cache that keeps every position, for sliding-window layers too: their mask hides what is outside the window."""
    return DynamicCache()


def join_caches(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """The rows of both, padded on the left to the longer one: (B1, heads, T1, D), (B2, …, T2, D) → (B1 + B2, …, max T, D)."""
    width = max(first.get_seq_length(), second.get_seq_length())
    joined = create_cache()
    for number, (layer, other) in enumerate(zip(first.layers, second.layers, strict=True)):
        keys = torch.cat([_pad_left(layer.keys, width), _pad_left(other.keys, width)])
        values = torch.cat([_pad_left(layer.values, width), _pad_left(other.values, width)])
        joined.update(keys, values, number)
    return joined


def select_rows(cache: DynamicCache, rows: list[int], begin: int) -> DynamicCache:
    """Only these rows, from position `begin` on: (B, heads, T, D) → (rows, heads, T - begin, D)."""
    selected = create_cache()
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys[rows, :, begin:], layer.values[rows, :, begin:], number)
    return selected


def join_masks(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The attention masks of joined caches: (B1, T1), (B2, T2) → (B1 + B2, max T)."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (first, second)])


def _pad_left(tensor: Any, width: int) -> torch.Tensor:
    return pad(tensor, (0, 0, width - tensor.shape[-2], 0))  # the last dimension stays, T grows to `width`
