"""Rows that share batches: their keys and values, and one step of all of them."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache

from peftrun.adapters import hot_swap, mixed_batch
from peftrun.adapters.row_routing import Router
from peftrun.models.device import of_inputs
from peftrun.serving import kv_cache
from peftrun.serving.request_state import Piece, Row

Told = list[tuple[Row, Piece | None]]  # what each row has got; None: the model gave it no numbers to choose by


class Computer:
    """The model, and who answers its rows: its layers are told anew only where the rows have changed."""

    def __init__(self, net: Any, pad: int) -> None:
        self.net, self.pad = net, pad
        self._names: list[str] | None = None
        self._answering = ExitStack()
        self._router: Router | None = None  # of the layers that there are now

    def release(self) -> None:
        """Takes back what layers were told, and all copies of adapters: before any is added or taken away."""
        self._names = self._router = None
        self._answering.close()

    def forget(self, adapter: str) -> None:
        """Takes an adapter out of the model."""
        self.net = hot_swap.without(self.net, adapter)

    @torch.inference_mode()
    def logits(self, names: list[str], **inputs: torch.Tensor | DynamicCache) -> torch.Tensor:
        """Of each row's last position, in float32. Row number i is answered by adapter `names[i]`."""
        self._let_answer(names)
        return self.net(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""
        return of_inputs(self.net)

    def _let_answer(self, names: list[str]) -> None:
        if names == self._names:
            return
        self._names = None
        self._answering.close()
        self._router = self._router or Router(self.net)
        self._answering.enter_context(mixed_batch.answering(self.net, names, self._router))
        self._names = list(names)


class Lane:
    """A running batch. Rows join and leave between two steps."""

    def __init__(self, computer: Computer) -> None:
        self.rows: list[Row] = []
        self._computer = computer
        self._cache, self._mask = kv_cache.fresh(), torch.zeros(0, 0, dtype=torch.long)

    def admit(self, rows: list[Row]) -> Told:
        """Reads the prompts of these rows together, and gives each its first token."""
        rows = sorted(rows, key=lambda row: row.ticket.version.internal)  # rows of one adapter in one piece
        width, device = max(len(row.prompt) for row in rows), self._computer.device
        padded = [[self._computer.pad] * (width - len(row.prompt)) + row.prompt for row in rows]
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        read = kv_cache.fresh()
        logits = self._computer.logits(
            _names(rows),
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=read,
        )
        found = _next(rows, logits)
        together = bool(self.rows)
        self._cache = kv_cache.joined(self._cache, read) if together else read
        self._mask = kv_cache.joined_masks(self._mask, mask) if together else mask
        self.rows = [*self.rows, *rows]
        self.keep([row for row in self.rows if not _over(row, found)])
        return found

    def step(self) -> Told:
        """Gives every row its next token."""
        last = [row.written[-1] for row in self.rows]
        mask = torch.cat([self._mask, self._mask.new_ones(len(last), 1)], dim=1)
        logits = self._computer.logits(
            _names(self.rows),
            input_ids=torch.tensor(last, device=mask.device)[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
        )
        self._mask = mask
        found = _next(self.rows, logits)
        self.keep([row for row in self.rows if not _over(row, found)])
        return found

    def keep(self, rows: list[Row]) -> None:
        """Lets all other rows go, and positions that none of these has read."""
        if len(rows) == len(self.rows):
            return
        wanted = {id(row) for row in rows}
        places = [place for place, row in enumerate(self.rows) if id(row) in wanted]
        left = [self.rows[place] for place in places]
        if not places:
            self.rows, self._cache = left, kv_cache.fresh()
            return
        mask = self._mask[places]
        begin = int(mask.any(0).nonzero()[0])
        self.rows, self._mask, self._cache = left, mask[:, begin:], kv_cache.kept(self._cache, places, begin)


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.ticket.version.internal for row in rows]


@torch.inference_mode()
def _next(rows: list[Row], logits: torch.Tensor) -> Told:
    likeliest, sound = logits.argmax(-1).tolist(), (~logits.isnan().any(-1)).tolist()
    return [
        (row, row.next(logits[place], likeliest[place]) if sound[place] else None) for place, row in enumerate(rows)
    ]


def _over(row: Row, found: Told) -> bool:
    return any(one is row and (piece is None or piece.finish is not None) for one, piece in found)
