"""Rows that share batches: their keys and values, and one step of all of them."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache

from peftrun.adapters import hot_swap, mixed_batch
from peftrun.adapters.row_routing import AdapterRouter
from peftrun.models.device import get_input_device
from peftrun.serving import kv_cache
from peftrun.serving.request_state import OutputChunk, SequenceState

StepOutput = list[
    tuple[SequenceState, OutputChunk | None]
]  # what each row has got; None: the model gave it no numbers to choose by


class ModelRunner:
    """The model, and who answers its rows: its layers are told anew only where the rows have changed."""

    def __init__(self, net: Any, pad: int) -> None:
        self.net, self.pad = net, pad
        self._names: list[str] | None = None
        self._routing = ExitStack()
        self._router: AdapterRouter | None = None  # of the layers that there are now

    def reset_routing(self) -> None:
        """Takes back what layers were told, and all copies of adapters: before any is added or taken away."""
        self._names = self._router = None
        self._routing.close()

    def remove_adapter(self, adapter: str) -> None:
        """Takes an adapter out of the model."""
        self.net = hot_swap.hot_remove(self.net, adapter)

    @torch.inference_mode()
    def compute_logits(self, names: list[str], **inputs: torch.Tensor | DynamicCache) -> torch.Tensor:
        """Of each row's last position, in float32. Row number i is answered by adapter `names[i]`."""
        self._route_rows(names)
        return self.net(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""
        return get_input_device(self.net)

    def _route_rows(self, names: list[str]) -> None:
        if names == self._names:
            return
        self._names = None
        self._routing.close()
        self._router = self._router or AdapterRouter(self.net)
        self._routing.enter_context(mixed_batch.route_rows(self.net, names, self._router))
        self._names = list(names)


class RunningBatch:
    """A running batch. Rows join and leave between two steps."""

    def __init__(self, computer: ModelRunner) -> None:
        self.rows: list[SequenceState] = []
        self._runner = computer
        self._cache, self._mask = kv_cache.create_cache(), torch.zeros(0, 0, dtype=torch.long)

    def admit(self, rows: list[SequenceState]) -> StepOutput:
        """Reads the prompts of these rows together, and gives each its first token."""
        rows = sorted(rows, key=lambda row: row.request.version.internal_name)  # rows of one adapter in one piece
        width, device = max(len(row.prompt) for row in rows), self._runner.device
        padded = [[self._runner.pad] * (width - len(row.prompt)) + row.prompt for row in rows]
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        read = kv_cache.create_cache()
        logits = self._runner.compute_logits(
            _list_adapter_names(rows),
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=read,
        )
        found = _sample_next(rows, logits)
        together = bool(self.rows)
        self._cache = kv_cache.join_caches(self._cache, read) if together else read
        self._mask = kv_cache.join_masks(self._mask, mask) if together else mask
        self.rows = [*self.rows, *rows]
        self.keep_rows([row for row in self.rows if not _is_finished(row, found)])
        return found

    def step(self) -> StepOutput:
        """Gives every row its next token."""
        last = [row.written[-1] for row in self.rows]
        mask = torch.cat([self._mask, self._mask.new_ones(len(last), 1)], dim=1)
        logits = self._runner.compute_logits(
            _list_adapter_names(self.rows),
            input_ids=torch.tensor(last, device=mask.device)[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
        )
        self._mask = mask
        found = _sample_next(self.rows, logits)
        self.keep_rows([row for row in self.rows if not _is_finished(row, found)])
        return found

    def keep_rows(self, rows: list[SequenceState]) -> None:
        """Lets all other rows go, and positions that none of these has read."""
        if len(rows) == len(self.rows):
            return
        wanted = {id(row) for row in rows}
        places = [place for place, row in enumerate(self.rows) if id(row) in wanted]
        left = [self.rows[place] for place in places]
        if not places:
            self.rows, self._cache = left, kv_cache.create_cache()
            return
        mask = self._mask[places]
        begin = int(mask.any(0).nonzero()[0])
        self.rows, self._mask, self._cache = left, mask[:, begin:], kv_cache.select_rows(self._cache, places, begin)


def _list_adapter_names(rows: Sequence[SequenceState]) -> list[str]:
    return [row.request.version.internal_name for row in rows]


@torch.inference_mode()
def _sample_next(rows: list[SequenceState], logits: torch.Tensor) -> StepOutput:
    likeliest, sound = logits.argmax(-1).tolist(), (~logits.isnan().any(-1)).tolist()
    return [
        (row, row.sample_next(logits[place], likeliest[place]) if sound[place] else None)
        for place, row in enumerate(rows)
    ]


def _is_finished(row: SequenceState, found: StepOutput) -> bool:
    return any(one is row and (piece is None or piece.finish is not None) for one, piece in found)
