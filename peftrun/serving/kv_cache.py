"""Key-value caches of batches whose rows join and leave. Rows are padded on the left: keys and values are (B, heads, T, D).

Each layer keeps its keys and values in buffers with spare rows and positions. A step writes one position in place, a row that leaves is
overwritten by the last one, and a row that joins is written into a spare one: nothing else is copied until the buffers are full.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE_POSITIONS = 128  # of a new buffer: so many steps before all keys and values are copied to a larger one


class BufferedLayer(DynamicLayer):
    """One layer's cache. `keys` and `values` are the part of the buffers that is in use."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []  # of keys and of values: (spare rows too, heads, spare positions too, D)
        self._rows, self._begin, self._end = 0, 0, 0  # rows in use, and the first position and the one after the last

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends positions to all rows. Args: key_states, value_states: (B, heads, new positions, D). Returns: all keys and values."""
        count = key_states.shape[-2]
        if not self._buffers:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rows = len(key_states)
            self._buffers = [states[:0] for states in (key_states, value_states)]
            self._grow(self._rows, 0, count)
        elif self._end + count > self._buffers[0].shape[2]:
            self._grow(1 << (self._rows - 1).bit_length(), self._end - self._begin, count)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end : self._end + count] = states
        self._end += count
        self._select_used()
        return self.keys, self.values

    def join(self, other: "BufferedLayer") -> None:
        """Adds the rows of `other`; the shorter ones are padded with zeros on the left."""
        first, rows, width = self._rows, self._rows + other._rows, other._end - other._begin
        if rows > self._buffers[0].shape[0] or width > self._end:
            self._grow(1 << (rows - 1).bit_length(), max(self._end - self._begin, width), 0)
        begin = min(self._begin, self._end - width)
        for buffer, states in zip(self._buffers, (other.keys, other.values), strict=True):
            # what an earlier row has left may be infinite, and zero weights times infinity are no zeros
            buffer[:first, :, begin : self._begin] = 0
            buffer[first:rows, :, begin : self._end - width] = 0
            buffer[first:rows, :, self._end - width : self._end] = states
        self._rows, self._begin = rows, begin
        self._select_used()

    def keep_rows(self, rows: int, width: int, moved: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Keeps the first `rows` rows and their last `width` positions, after rows were `moved`: to where, from where."""
        begin = self._end - width
        for buffer in self._buffers if moved else []:
            targets, sources = moved  # type: ignore[misc]
            used = buffer[:, :, begin : self._end]
            used.index_copy_(0, targets, used.index_select(0, sources))
        self._rows, self._begin = rows, begin
        self._select_used()

    def _grow(self, rows: int, width: int, count: int) -> None:
        """Moves all rows to new buffers for `rows` rows, `width` positions up to `_end`, and `count` more."""
        size, used = width + count + SPARE_POSITIONS, self._end - self._begin
        for index, buffer in enumerate(self._buffers):
            _, heads, _, dim = buffer.shape
            grown = buffer.new_empty(rows, heads, size, dim)
            if used:
                grown[: self._rows, :, width - used : width] = buffer[: self._rows, :, self._begin : self._end]
            self._buffers[index] = grown
        self._begin, self._end = width - used, width

    def _select_used(self) -> None:
        self.keys, self.values = (buffer[: self._rows, :, self._begin : self._end] for buffer in self._buffers)


def create_cache() -> DynamicCache:
    """An empty cache that keeps every position, for sliding-window layers too: their mask hides what is outside the window."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = BufferedLayer
    return cache


def join_caches(cache: DynamicCache, other: DynamicCache) -> None:
    """Adds the rows of `other` to `cache`, padded on the left to the longer one: (B1 + B2, heads, max T, D)."""
    for layer, joining in zip(cache.layers, other.layers, strict=True):
        layer.join(joining)


def keep_rows(cache: DynamicCache, order: list[int], width: int) -> None:
    """Keeps these rows, in this order, and their last `width` positions: (B, heads, T, D) → (rows, heads, width, D)."""
    moved = [[target, source] for target, source in enumerate(order) if target != source]
    indices: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}  # layers may be on several devices
    for layer in cache.layers:
        if moved and layer.device not in indices:
            targets, sources = torch.tensor(moved, device=layer.device).T.contiguous()
            indices[layer.device] = targets, sources
        layer.keep_rows(len(order), width, indices.get(layer.device))


def fill_holes(kept: list[int]) -> list[int]:
    """The kept rows in an order in which as few as possible move: the last ones take the places of rows that left."""
    count = len(kept)
    moving = [row for row in kept if row >= count]
    staying = set(kept)
    return [row if row in staying else moving.pop() for row in range(count)]
