"""One layer for several cells: their LoRA matrices in stacks, and one autograd function that adds each cell's delta to its rows.

A joint batch is taken as blocks of equally many rows, the greatest common divisor of the cells' row counts, each of one cell: a layer
then takes two batched products, whatever the number of cells and however their batch sizes differ, and nothing is padded.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.adapters.joint.rng_streams import RngStream, drop_by_cell
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


class DtypeCache:
    """Cast of the last tensor: the query, key and value projections cast the same input, one after another."""

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] = ()  # (key, tensor, cast tensor)

    def clear(self) -> None:
        """Frees the tensors at the end of a pass."""
        self.entry = ()

    def cast(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`."""
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

    @functools.cached_property
    def block_cells(self) -> list[int]:
        """The cell of each block; all blocks have equally many rows."""
        rows = math.gcd(*(span.rows for span in self.parts))
        return [span.cell for span in self.parts for _ in range(span.rows // rows)]

    @functools.cached_property
    def block_slice(self) -> slice | None:
        """The blocks' matrices as a slice of a stack, a view: one block a cell and consecutive cells; None: they must be gathered."""
        first, count = self.block_cells[0], len(self.block_cells)
        return slice(first, first + count) if self.block_cells == list(range(first, first + count)) else None

    @functools.cached_property
    def _tensors(self) -> dict[tuple[int, torch.device], torch.Tensor]:
        return {}

    def index_blocks(self, device: torch.device) -> torch.Tensor:
        """`block_cells` on the device, (blocks,); copied there once per batch."""
        return self._copy_once(0, self.block_cells, device)

    def count_blocks(self, cells: int, device: torch.device) -> torch.Tensor:
        """How many blocks each of so many cells has, (cells,)."""
        return self._copy_once(cells, [self.block_cells.count(cell) for cell in range(cells)], device)

    def _copy_once(self, name: int, values: list[int], device: torch.device) -> torch.Tensor:
        if (name, device) not in self._tensors:
            self._tensors[name, device] = torch.tensor(values).to(device, non_blocking=True)
        return self._tensors[name, device]

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
        cast_a, cast_b: both in the dtype of autocast; None: not computed under autocast so far.
        scale: factor of B·A: (cells, 1, 1).
        dropout: probability of each cell.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: torch.Tensor
    dropout: list[float]
    cast_a: torch.Tensor | None = None
    cast_b: torch.Tensor | None = None

    def choose_dtype(self, x: torch.Tensor) -> torch.dtype:
        """The dtype in which PEFT multiplies `x` by A and B: autocast's, as on a GPU; without autocast float32, their own."""
        kind = x.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.a.dtype

    def gather(self, layout: BatchLayout, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A (blocks, r, in), Bᵀ (blocks, r, out) and the scale (blocks, 1, 1) of each block."""
        a, b = (self.a, self.b) if dtype == self.a.dtype else (self.cast_a, self.cast_b)
        assert a is not None and b is not None
        blocks = layout.block_slice
        index = layout.index_blocks(a.device) if blocks is None else blocks
        return a[index], b[index], self.scale[index]

    def add_gradients(self, layout: BatchLayout, grad_a: torch.Tensor, grad_b: torch.Tensor) -> None:
        """Adds the gradients of each block, (blocks, r, in) and (blocks, r, out), to those of its cell."""
        if layout.block_slice is not None:
            self.grad_a[layout.block_slice] += grad_a
            self.grad_b[layout.block_slice] += grad_b
            return
        # Blocks are in the order of the cells. index_add would sum a cell's blocks on a GPU in any order, and a product with
        # ones would carry one cell's nan into the others.
        lengths = layout.count_blocks(len(self.a), grad_a.device)
        for total, grad in ((self.grad_a, grad_a), (self.grad_b, grad_b)):
            total.add_(torch.segment_reduce(grad.to(total.dtype), "sum", lengths=lengths, unsafe=True))


def apply_batched_lora(
    result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, layout: BatchLayout
) -> torch.Tensor:
    """The base layer's result (rows, …, out) with each cell's scale · (x Aᵀ) Bᵀ added to its rows; x: (rows, …, in)."""
    if stack.a.shape[1] == 0:  # no cell adapts this layer
        return result
    dropout = [stack.dropout[span.cell] for span in layout.parts]
    if any(p and span.draws for p, span in zip(dropout, layout.parts, strict=True)):
        x = drop_by_cell(x.float(), layout.parts, dropout).to(
            stack.choose_dtype(x)
        )  # (rows, …, in); PEFT too drops in float32
    # The function writes into its first argument: autograd forbids that for a view, and reshape copies what is not contiguous.
    target = result.clone() if is_view(result) or not result.is_contiguous() else result
    # The anchor keeps the first layer in the graph: its input needs no gradient, and A and B are no arguments.
    anchor = torch.zeros((), requires_grad=True)
    return BatchedLoraFn.apply(target, x, stack, layout, anchor)


class BatchedLoraFn(torch.autograd.Function):
    """result + scale · (x Aᵀ) Bᵀ for the rows of each cell. Gradients of A and B are added to their buffers right in the backward pass.

    Products are computed in the dtype in which PEFT computes them for a single adapter. n: tokens of a block's rows.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, layout: BatchLayout, _: Any
    ) -> torch.Tensor:
        """`result` itself, changed in place: (rows, …, out)."""
        dtype = stack.choose_dtype(x)
        a, b, scale = stack.gather(layout, dtype)
        cast = _split_blocks(layout.casts.cast(x, dtype), layout)  # (blocks, n, in)
        h = torch.bmm(cast, a.mT).mul_(scale)  # (blocks, n, r)
        out = _split_blocks(result, layout)  # (blocks, n, out)
        if out.dtype == dtype:
            out.baddbmm_(h, b)
        else:
            out.copy_(out.to(dtype).baddbmm_(h, b))  # a third faster than a product followed by a sum of two dtypes
        ctx.save_for_backward(x, h)
        ctx.stack, ctx.layout, ctx.dtype = stack, layout, dtype
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `result` (rows, …, out) and `x` (rows, …, in)."""
        (x, h), stack, layout = ctx.saved_tensors, ctx.stack, ctx.layout
        a, b, scale = stack.gather(layout, ctx.dtype)
        cast = _split_blocks(layout.casts.cast(x, ctx.dtype), layout)  # (blocks, n, in)
        g = _split_blocks(grad, layout).to(ctx.dtype)  # (blocks, n, out)
        grad_h = torch.bmm(g, b.mT).mul_(scale)  # (blocks, n, r)
        # h holds the scale already
        stack.add_gradients(layout, torch.bmm(grad_h.mT, cast), torch.bmm(h.mT, g))
        grad_x = torch.bmm(grad_h, a).to(x.dtype).view_as(x) if ctx.needs_input_grad[1] else None
        return grad, grad_x, None, None, None


def _split_blocks(x: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
    # (rows, …, width), or (rows · tokens, width) in layers that get it so → (blocks, n, width)
    return x.reshape(len(layout.block_cells), -1, x.shape[-1])
