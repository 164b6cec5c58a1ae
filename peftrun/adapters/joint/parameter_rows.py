"""All parameters of several adapters in one tensor, a row for each adapter, and their gradients in another.

Whatever is done for all cells at once, norms of gradients, clipping, optimizer steps, casts, is then a few operations on whole rows,
however many cells, layers and matrices there are. PEFT's parameters and their `.grad` are views.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

ALIGNMENT = 64  # elements: each part begins at a multiple, so that kernels may load several elements at once
CHUNK = 1024  # elements of which a row is a multiple, so that it can be summed in two steps, which rounds less than one


def _round_up(size: int, multiple: int = ALIGNMENT) -> int:
    return -(-size // multiple) * multiple


class ParameterRows:
    """Two tensors of (cells, width), and views of them that are handed out from the left to the right.

    Attributes:
        values, grads: parameters and gradients.
        casts: `values` in the dtype of autocast; None: there was no autocast so far.
    """

    def __init__(self, cells: int, shared: Iterable[int], own: Sequence[Iterable[int]], like: torch.Tensor) -> None:
        """Args: shared: elements of each part that every row has. own: elements of each further part of each cell."""
        self.first_own = sum(map(_round_up, shared))
        width = self.first_own + max((sum(map(_round_up, sizes)) for sizes in own), default=0)
        self.values = like.new_zeros(cells, _round_up(width, CHUNK))
        self.grads = torch.zeros_like(self.values)
        self.casts: torch.Tensor | None = None
        self.next_shared, self.next_own = 0, [self.first_own] * cells

    def take_shared(self, *shape: int) -> slice:
        """The columns of the next part that every row has."""
        begin, size = self.next_shared, torch.Size(shape).numel()
        self.next_shared += _round_up(size)
        return slice(begin, begin + size)

    @torch.no_grad()
    def move_in(self, cell: int, parameter: torch.nn.Parameter) -> None:
        """Makes a parameter and its gradient views of the next part of one row."""
        columns = slice(self.next_own[cell], self.next_own[cell] + parameter.numel())
        self.next_own[cell] += _round_up(parameter.numel())
        bind_parameter(parameter, self.values[cell, columns].view_as(parameter), self.grads[cell, columns].view_as(parameter))  # fmt: skip

    def compute_norms(self, cells: slice) -> torch.Tensor:
        """The norm of the gradients of each of these cells."""
        chunks = self.grads[cells].unflatten(1, (-1, CHUNK))  # (cells, width) → (cells, chunks, CHUNK)
        return torch.linalg.vector_norm(torch.linalg.vector_norm(chunks, dim=-1), dim=-1)

    def update_casts(self, dtype: torch.dtype) -> torch.Tensor:
        """`values` as they are now, in another dtype: (cells, width), always the same tensor."""
        if self.casts is None:
            self.casts = torch.empty_like(self.values, dtype=dtype)
        return self.casts.copy_(self.values)


@torch.no_grad()
def bind_parameter(parameter: torch.nn.Parameter, value: torch.Tensor, grad: torch.Tensor) -> None:
    """Moves a parameter into `value`, and makes `grad` its gradient; both have its shape."""
    value.copy_(parameter.data)
    parameter.data, parameter.grad = value, grad


def view_part(rows: Any, columns: slice, *shape: int) -> torch.Tensor:
    """Some columns of (cells, width) as (cells, *shape)."""
    part: torch.Tensor = rows[:, columns].unflatten(1, shape)
    return part
