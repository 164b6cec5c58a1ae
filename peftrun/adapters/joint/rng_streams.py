"""A random number stream per cell: each cell of a joint run draws from its own stream, as often as it would alone.

So a cell drops the same units in a joint run as in a run of its own, whatever the other cells are and however far its rows are padded
to match theirs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DROPOUT_FIELDS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout_rate")


class RngStream:
    """One cell's state of torch's generators."""

    is_active = False  # within `swap_in`

    def __init__(self) -> None:
        self.keep()

    def keep(self, device: str | None = None) -> None:
        """Stores the state of the device's generator as this cell's; None: of all generators."""
        if device != "cuda":
            self.cpu = torch.get_rng_state()
        if device != "cpu":
            self.gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self, device: str | None = None) -> None:
        """Sets the device's generator to this cell's state; None: all generators."""
        if device != "cuda":
            torch.set_rng_state(self.cpu)
        if device != "cpu" and self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Within the block random numbers come from this cell's stream; the others' are unchanged."""
        before = RngStream()
        self.restore()
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
            self.keep()
            before.restore()


def drop_by_cell(x: torch.Tensor, spans: Sequence[Any], probabilities: Sequence[float]) -> torch.Tensor:
    """`x` (rows of all cells, …) with each cell's dropout, drawn for the tokens of its own batch only; its padding becomes zero.

    Args: x: (rows, width), (rows, tokens, width), or attention weights (rows, heads, tokens, tokens).
        spans: the cells' rows, with `rows`, `widths` and `draws`; no `draws`: no dropout.
        probabilities: of each span.
    """
    chunks = list(x.split([span.rows for span in spans]))
    token_dims, before = {2: (), 3: (1,)}.get(x.dim(), (2, 3)), RngStream()
    for number, (span, p) in enumerate(zip(spans, probabilities, strict=True)):
        if span.draws is None or p == 0:
            continue
        # Only the generator of x's device draws; saved and restored once for all cells, as this runs in every layer.
        span.draws.restore(x.device.type)
        span.draws.is_active = True
        try:
            dropped = torch.nn.functional.dropout(_remove_padding(chunks[number], span.widths, token_dims), p)
        finally:
            span.draws.is_active = False
        span.draws.keep(x.device.type)
        chunks[number] = _pad_like(dropped, chunks[number], token_dims)
    before.restore(x.device.type)
    return torch.cat(chunks)


class PerAdapterDropout(TorchFunctionMode):
    """While active, dropout of the base model and of its attention is drawn cell by cell.

    Args: parts: the joint batch's spans in order, each with `rows`, `widths` and `draws`.
    """

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        super().__init__()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of `func`, of dropout and attention per cell."""
        kwargs = kwargs or {}
        if any(span.draws.is_active for span in self.parts):  # already within a cell's stream
            return func(*args, **kwargs)
        if func is torch.nn.functional.dropout:
            return self._apply_dropout(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.get("dropout_p", 0.0) > 0:
            return self._compute_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _apply_dropout(
        self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        # A tensor whose first dimension is not the batch's rows cannot be split by cell.
        if not training or p == 0 or x.shape[0] != sum(span.rows for span in self.parts):
            return torch.nn.functional.dropout(x, p, training, inplace)
        return drop_by_cell(x, self.parts, [p] * len(self.parts))

    def _compute_attention(self, q: Any, k: Any, v: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        # q, k, v: (rows, heads, tokens, head_dim); attn_mask: (rows or 1, heads or 1, tokens, tokens)
        sizes, outputs = [span.rows for span in self.parts], []
        masks = [None] * len(sizes) if attn_mask is None else attn_mask.expand(len(q), -1, -1, -1).split(sizes)
        chunks = zip(self.parts, q.split(sizes), k.split(sizes), v.split(sizes), masks, strict=True)
        for span, q_rows, k_rows, v_rows, mask in chunks:
            # without the padding, since the kernel draws for every entry of tokens × tokens
            inputs = [_remove_padding(rows, span.widths, (2,)) for rows in (q_rows, k_rows, v_rows)]
            own_mask = None if mask is None else _remove_padding(mask, span.widths, (2, 3))
            with span.draws.swap_in():
                output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=own_mask, **kwargs)
            outputs.append(_pad_like(output, q_rows, (2,)))
        return torch.cat(outputs)  # (rows, heads, tokens, head_dim)


def has_dropout(net: Any) -> bool:
    """Whether the base model itself has dropout in training."""
    config = net.config.get_text_config()
    modules = (module for name, module in net.named_modules() if ".lora_dropout." not in name)
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in modules) or any(
        getattr(config, name, 0) for name in DROPOUT_FIELDS
    )


def _remove_padding(x: torch.Tensor, widths: dict[int, int], dims: tuple[int, ...]) -> torch.Tensor:
    # padding is on the right, so the cell's tokens come first; a width that is not in `widths` is no padded one
    for dim in dims:
        x = x.narrow(dim, 0, widths.get(x.shape[dim], x.shape[dim]))
    return x


def _pad_like(x: torch.Tensor, reference: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """`x` padded with zeros at the end of `dims` to the sizes of `reference`."""
    for dim in dims:
        shape = list(x.shape)
        shape[dim] = reference.shape[dim] - x.shape[dim]
        x = torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x
    return x
