"""One layer for several cells: their LoRA matrices in stacks, and one autograd function that adds each cell's delta to its rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.adapters.joint.rng_streams import RngStream
from peftrun.compat.torch import count_writes, is_view


@dataclass(frozen=True)
class RowSpan:
    """Consecutive rows of one cell in a joint batch.

    Attributes:
        widths: padded tokens of a row in the joint batch → tokens of a row in the cell's own batch.
        draws: the cell's random numbers for dropout; None: no dropout.
    """

    cell: int
    rows: int
    widths: dict[int, int]
    draws: RngStream | None = None


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which PEFT multiplies `x` by A and B: float32, their own; on a GPU, under autocast, the base model's."""
    return x.dtype if x.is_cuda else torch.float32


class DtypeCache:
    """Cast of the last tensor: the query, key and value projections cast the same input, one after another."""

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] = ()  # (key, tensor, cast tensor)

    def clear(self) -> None:
        """Frees the tensors at the end of a pass."""
        self.entry = ()

    def cast(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in `matmul_dtype`."""
        dtype = matmul_dtype(x)
        if x.dtype == dtype:
            return x
        key = (x.data_ptr(), x.shape, count_writes(x))
        if not self.entry or self.entry[0] != key:
            self.entry = (key, x, x.to(dtype))  # holds x, so that no other tensor gets its address
        cast: torch.Tensor = self.entry[2]
        return cast


@dataclass(frozen=True)
class BatchLayout:
    """Which rows of a joint batch belong to which cell, in order.

    Attributes:
        labels: labels of each span, where the output layer gets only the positions that predict one; empty: it gets whole rows.
        casts: of the batch's pass.
    """

    parts: tuple[RowSpan, ...]
    labels: tuple[int, ...] = ()
    casts: DtypeCache = field(default_factory=DtypeCache, compare=False)

    @property
    def cells(self) -> list[int]:
        """The cell of each span."""
        return [span.cell for span in self.parts]

    @property
    def has_equal_rows(self) -> bool:
        """Whether all cells have the same number of rows."""
        return len({span.rows for span in self.parts}) == 1

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of the joint batch (rows, …) as one view per span."""
        return list(x.split([span.rows for span in self.parts]))

    def split_outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The same of the output layer's input or output: (rows, …), or (1, labels, …) of the positions that predict a label."""
        return list(x.split(list(self.labels), dim=1)) if self.labels else self.split(x)


@dataclass
class StackedWeights:
    """One layer's LoRA matrices of all cells, padded to the highest rank r.

    Attributes:
        a, grad_a: A and its gradient: (cells, r, in).
        b, grad_b: Bᵀ and its gradient: (cells, r, out).
        scale: factor of B·A: (cells, 1, 1).
        dropout: probability of each cell.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: torch.Tensor
    dropout: list[float]


def apply_batched_lora(
    result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, layout: BatchLayout
) -> torch.Tensor:
    """The base layer's result (rows, …, out) with each cell's scale · (x Aᵀ) Bᵀ added to its rows; x: (rows, …, in)."""
    if stack.a.shape[1] == 0:  # no cell adapts this layer
        return result
    if any(stack.dropout[span.cell] and span.draws for span in layout.parts):
        chunks = [rows.float() for rows in layout.split(x)]
        for index, span in enumerate(layout.parts):
            if span.draws:
                chunks[index] = span.draws.dropout(chunks[index], stack.dropout[span.cell], span.widths)
        x = torch.cat(chunks)  # (rows, …, in)
    # The function writes into its first argument: autograd forbids that for a view, and reshape copies what is not contiguous.
    target = result.clone() if is_view(result) or not result.is_contiguous() else result
    # The anchor keeps the first layer in the graph: its input needs no gradient, and A and B are no arguments.
    anchor = torch.zeros((), requires_grad=True)
    return BatchedLoraFn.apply(target, x, stack, layout, anchor)


class BatchedLoraFn(torch.autograd.Function):
    """result + scale · (x Aᵀ) Bᵀ for the rows of each cell. Gradients of A and B are added to their buffers right in the backward pass.

    Products are computed in the dtype in which PEFT computes them for a single adapter.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, layout: BatchLayout, _: Any
    ) -> torch.Tensor:
        """`result` itself, changed in place: (rows, …, out)."""
        cast, hidden = layout.casts.cast(x), []
        for cells, count, rows in _iter_blocks(layout, len(x)):
            # (count, n, in) @ (count, in, r) = (count, n, r), where n are the tokens of a cell's rows
            h = torch.bmm(_flatten_rows(cast[rows], count), stack.a[cells].to(cast.dtype).mT).mul_(stack.scale[cells])
            out, b = (
                _flatten_rows(result[rows], count),
                stack.b[cells].to(cast.dtype),
            )  # (count, n, out), (count, r, out)
            if out.dtype == h.dtype:
                out.baddbmm_(h, b)
            else:
                out.copy_(out.float().baddbmm_(h, b))  # a third faster than a product followed by a sum of two dtypes
            hidden.append(h)
        ctx.save_for_backward(x, *hidden)
        ctx.stack, ctx.layout = stack, layout
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `result` (rows, …, out) and `x` (rows, …, in)."""
        x, *hidden = ctx.saved_tensors
        stack, cast, grads_x = ctx.stack, ctx.layout.casts.cast(x), []
        for (cells, count, rows), h in zip(_iter_blocks(ctx.layout, len(x)), hidden, strict=True):
            g = _flatten_rows(grad[rows], count).to(cast.dtype)  # (count, n, out)
            grad_h = torch.bmm(g, stack.b[cells].to(cast.dtype).mT).mul_(stack.scale[cells])  # (count, n, r)
            stack.grad_b[cells] += torch.bmm(h.mT, g)  # (count, r, out); h holds the scale already
            stack.grad_a[cells] += torch.bmm(grad_h.mT, _flatten_rows(cast[rows], count))  # (count, r, in)
            if ctx.needs_input_grad[1]:
                grads_x.append(torch.bmm(grad_h, stack.a[cells].to(cast.dtype)).to(x.dtype).view_as(x[rows]))
        return grad, torch.cat(grads_x) if len(grads_x) > 1 else next(iter(grads_x), None), None, None, None


def _iter_blocks(layout: BatchLayout, rows: int) -> Iterator[tuple[Any, int, slice]]:
    """(index of cells in the stack, their number, slice of rows) of each product: one for all cells if they have equal rows."""
    if layout.has_equal_rows:
        yield _cell_index(layout.cells), len(layout.parts), slice(0, rows)
        return
    per_row = rows // sum(span.rows for span in layout.parts)  # > 1 in layers that get (rows · tokens, in)
    begin = 0
    for span in layout.parts:
        yield _cell_index([span.cell]), 1, slice(begin, begin + span.rows * per_row)
        begin += span.rows * per_row


def _cell_index(cells: list[int]) -> Any:
    # a slice where the cells are consecutive: a view of the stack, where a list would copy
    first, count = cells[0], len(cells)
    return slice(first, first + count) if cells == list(range(first, first + count)) else cells


def _flatten_rows(x: torch.Tensor, cells: int) -> torch.Tensor:
    # (rows, …, width) → (cells, rows / cells · …, width)
    return x.reshape(cells, -1, x.shape[-1])
