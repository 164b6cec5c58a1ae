"""One layer of several cells: their matrices in stacks, and what these add to the rows of each cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from peftrun.adapters.joint.rng_streams import RngStream


@dataclass(frozen=True)
class RowSpan:
    """Rows of one cell in a batch, one cell behind another.

    Attributes:
        widths: tokens of a row in the batch → of a row of this cell alone.
        draws: of its dropout; None: nothing is dropped.
    """

    cell: int
    rows: int
    widths: dict[int, int]
    draws: RngStream | None = None


@dataclass(frozen=True)
class BatchLayout:
    """Whose rows a batch holds, in order."""

    parts: tuple[RowSpan, ...]

    @property
    def cells(self) -> list[int]:
        """Number of the cell of each part."""
        return [part.cell for part in self.parts]

    @property
    def has_equal_rows(self) -> bool:
        """Whether all cells bring the same number of rows."""
        return len({part.rows for part in self.parts}) == 1

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        """A batch's tensor, cell by cell."""
        return list(x.split([part.rows for part in self.parts]))


@dataclass
class StackedWeights:
    """One layer's matrices of all cells: A (cells, r, in), B (cells, r, out), their gradients, and what each product is scaled by."""

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: torch.Tensor
    dropout: list[float]


def apply_batched_lora(
    result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, seating: BatchLayout
) -> torch.Tensor:
    """The base layer's result with each cell's scale · (x Aᵀ) B added to its rows."""
    if stack.a.shape[1] == 0:
        return result
    if any(stack.dropout[part.cell] and part.draws for part in seating.parts):
        pairs = zip(seating.parts, seating.split(x), strict=True)
        x = torch.cat([_apply_dropout(part, rows.float(), stack.dropout[part.cell]) for part, rows in pairs])
    # In place, so it must not be a view; and the anchor keeps the first layer in the graph, whose input needs no gradient.
    own = result.clone() if result._is_view() or not result.is_contiguous() else result
    return BatchedLoraFn.apply(own, x, stack, seating, torch.zeros((), requires_grad=True))


def _apply_dropout(part: RowSpan, rows: torch.Tensor, p: float) -> torch.Tensor:
    return part.draws.dropout(rows, p, part.widths) if part.draws else rows


class BatchedLoraFn(torch.autograd.Function):
    """result + scale · (x Aᵀ) B for the rows of each cell; the gradients of A and B are added to their buffer at once.

    Products are taken in the dtype in which PEFT takes them where an adapter is alone.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, stack: StackedWeights, seating: BatchLayout, _: Any
    ) -> torch.Tensor:
        """`result` itself, changed in place: (rows, …, out)."""
        cast, inner = _DTYPE_CACHE.of(x), []
        for cells, count, part in _iter_blocks(seating, len(x)):
            h = torch.bmm(_flatten_rows(cast[part], count), stack.a[cells].to(cast.dtype).mT).mul_(stack.scale[cells])
            _add_matmul(_flatten_rows(result[part], count), h, stack.b[cells].to(cast.dtype))
            inner.append(h)
        ctx.save_for_backward(x, *inner)
        ctx.stack, ctx.layout = stack, seating
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `result` and `x`."""
        x, *inner = ctx.saved_tensors
        stack, cast, parts = ctx.stack, _DTYPE_CACHE.of(x), []
        for (cells, count, part), h in zip(_iter_blocks(ctx.layout, len(x)), inner, strict=True):
            g = _flatten_rows(grad[part], count).to(cast.dtype)
            down = torch.bmm(g, stack.b[cells].to(cast.dtype).mT).mul_(stack.scale[cells])
            stack.grad_b[cells] += torch.bmm(h.mT, g)
            stack.grad_a[cells] += torch.bmm(down.mT, _flatten_rows(cast[part], count))
            if ctx.needs_input_grad[1]:
                parts.append(torch.bmm(down, stack.a[cells].to(cast.dtype)).to(x.dtype).view_as(x[part]))
        return grad, torch.cat(parts) if len(parts) > 1 else next(iter(parts), None), None, None, None


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """In which PEFT multiplies `x` by an adapter's matrices: float32, which they are held in; on a GPU, under autocast, the base's."""
    return x.dtype if x.is_cuda else torch.float32


class _DtypeCache:
    """The last tensor seen, ready to be multiplied: queries, keys and values are made of the same one, one after another."""

    def __init__(self) -> None:
        self.seen: tuple[Any, ...] = ()

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in the dtype of products."""
        wanted = matmul_dtype(x)
        if x.dtype == wanted:
            return x
        key = (x.data_ptr(), x.shape, x._version)
        if not self.seen or self.seen[0] != key:
            self.seen = (key, x, x.to(wanted))  # x is kept, so that nothing else can come to lie in its place
        found: torch.Tensor = self.seen[2]
        return found


_DTYPE_CACHE = _DtypeCache()


def clear_dtype_cache() -> None:
    """Keeps no tensor alive beyond its pass."""
    _DTYPE_CACHE.seen = ()


def _iter_blocks(seating: BatchLayout, rows: int) -> Iterator[tuple[Any, int, slice]]:
    """Cells whose rows one product computes, how many they are, and where those rows lie: all at once if each brings as many."""
    each = rows // sum(part.rows for part in seating.parts)  # tokens, where a layer takes them without their rows
    if seating.has_equal_rows:
        yield _cell_index(seating.cells), len(seating.parts), slice(0, rows)
        return
    begin = 0
    for part in seating.parts:
        yield _cell_index([part.cell]), 1, slice(begin, begin + part.rows * each)
        begin += part.rows * each


def _cell_index(cells: list[int]) -> Any:
    """What picks the cells out of a stack: a slice where they follow one another, for it copies nothing."""
    first, count = cells[0], len(cells)
    return slice(first, first + count) if cells == list(range(first, first + count)) else cells


def _flatten_rows(x: torch.Tensor, cells: int) -> torch.Tensor:
    return x.reshape(cells, -1, x.shape[-1])


def _add_matmul(out: torch.Tensor, h: torch.Tensor, b: torch.Tensor) -> None:
    """out += h b, in place: (cells, tokens, width)."""
    if out.dtype == h.dtype:
        out.baddbmm_(h, b)
    else:
        out.copy_(out.float().baddbmm_(h, b))  # one product in place is a third faster than a sum of two dtypes
