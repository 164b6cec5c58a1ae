"""Keys and values of the rows that are being answered: rows join on the left-padded side, and leave."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache


def create_cache() -> DynamicCache:
    """An empty cache that keeps every position, also of layers that look back over a window only: their mask sees to it."""
    return DynamicCache()


def join_caches(one: DynamicCache, other: DynamicCache) -> DynamicCache:
    """The rows of both, padded on the left to one length."""
    width = max(one.get_seq_length(), other.get_seq_length())
    found = create_cache()
    for number, (first, second) in enumerate(zip(one.layers, other.layers, strict=True)):
        keys = torch.cat([_pad_left(first.keys, width), _pad_left(second.keys, width)])
        values = torch.cat([_pad_left(first.values, width), _pad_left(second.values, width)])
        found.update(keys, values, number)
    return found


def select_rows(cache: DynamicCache, rows: list[int], begin: int) -> DynamicCache:
    """These rows alone, from position `begin` on."""
    found = create_cache()
    for number, layer in enumerate(cache.layers):
        found.update(layer.keys[rows, :, begin:], layer.values[rows, :, begin:], number)
    return found


def join_masks(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The masks of rows that are joined."""
    width = max(one.shape[1], other.shape[1])
    return torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (one, other)])


def _pad_left(values: Any, width: int) -> torch.Tensor:
    return pad(values, (0, 0, width - values.shape[-2], 0))
