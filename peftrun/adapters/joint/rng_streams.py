"""Random numbers of one cell among several: each draws from a stream of its own, as many as it would draw alone.

A cell that is trained beside others then drops the same units as one that is trained alone, whoever its neighbours are and
however far its rows are padded for their sake.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DROPOUT_FIELDS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout_rate")


class RngStream:
    """The state of torch's generators as one cell has left them."""

    drawing = False  # inside `own`

    def __init__(self) -> None:
        self.keep()

    def keep(self) -> None:
        """The generators' state is this cell's."""
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """The generators go on where this cell has stopped."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is drawn inside is drawn from this cell's stream; the others' stands still."""
        before = RngStream()
        self.restore()
        self.is_active = True
        try:
            yield
        finally:
            self.is_active = False
            self.keep()
            before.restore()

    def dropout(self, x: torch.Tensor, p: float, widths: dict[int, int]) -> torch.Tensor:
        """The cell's rows with dropout, drawn for the tokens that it has alone; padding beyond them becomes zero.

        Args: x: (rows, width), (rows, tokens, width), or attention's (rows, heads, tokens, tokens).
            widths: tokens in the batch → tokens of the cell alone.
        """
        if p == 0:
            return x
        along = {2: (), 3: (1,)}.get(x.dim(), (2, 3))
        with self.own():
            return _pad_like(torch.nn.functional.dropout(_remove_padding(x, widths, along), p), x, along)


class PerAdapterDropout(TorchFunctionMode):
    """While it is on, dropout of the base and of its attention is drawn cell by cell.

    Args: parts: the batch's cells in order, each with `rows`, `width` and `draws`.
    """

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        super().__init__()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What `func` returns."""
        kwargs = kwargs or {}
        if any(part.draws.is_active for part in self.parts):  # an adapter's dropout, drawn by its cell already
            return func(*args, **kwargs)
        if func is torch.nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.get("dropout_p", 0.0) > 0:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0 or x.shape[0] != sum(part.rows for part in self.parts):
            return torch.nn.functional.dropout(x, p, training, inplace)
        chunks = x.split([part.rows for part in self.parts])
        return torch.cat([self._own(part, rows, p) for part, rows in zip(self.parts, chunks, strict=True)])

    @staticmethod
    def _own(part: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        found: torch.Tensor = part.draws.dropout(x, p, part.widths)
        return found

    def _attend(self, q: Any, k: Any, v: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        sizes, found = [part.rows for part in self.parts], []
        masks = [None] * len(sizes) if attn_mask is None else attn_mask.expand(len(q), -1, -1, -1).split(sizes)
        each = zip(self.parts, q.split(sizes), k.split(sizes), v.split(sizes), masks, strict=True)
        for part, one_q, one_k, one_v, mask in each:
            cut = [_remove_padding(one, part.widths, (2,)) for one in (one_q, one_k, one_v)]
            inner = None if mask is None else _remove_padding(mask, part.widths, (2, 3))
            with part.draws.own():
                answer = torch.nn.functional.scaled_dot_product_attention(*cut, attn_mask=inner, **kwargs)
            found.append(_pad_like(answer, one_q, (2,)))
        return torch.cat(found)


def has_dropout(net: Any) -> bool:
    """Whether the base itself drops units while it is trained."""
    config = net.config.get_text_config()
    own = (one for name, one in net.named_modules() if ".lora_dropout." not in name)
    return any(isinstance(one, torch.nn.Dropout) and one.p > 0 for one in own) or any(
        getattr(config, name, 0) for name in DROPOUT_FIELDS
    )


def _remove_padding(x: torch.Tensor, widths: dict[int, int], along: tuple[int, ...]) -> torch.Tensor:
    for dim in along:
        x = x.narrow(dim, 0, widths.get(x.shape[dim], x.shape[dim]))
    return x


def _pad_like(x: torch.Tensor, like: torch.Tensor, along: tuple[int, ...]) -> torch.Tensor:
    """`x` with zeros behind it until it is as long as `like`."""
    for dim in along:
        shape = list(x.shape)
        shape[dim] = like.shape[dim] - x.shape[dim]
        x = torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x
    return x
