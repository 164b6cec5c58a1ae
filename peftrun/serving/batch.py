"""Continuous batching: sequences that share forward passes, their key-value cache, and one step of all of them.

Shapes: B rows (sequences), T positions of the longest row, V vocabulary. Rows are padded on the left.
"""

from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache

from peftrun.adapters import hot_swap, mixed_batch
from peftrun.adapters.row_routing import AdapterRouter
from peftrun.models.device import get_input_device
from peftrun.serving import kv_cache
from peftrun.serving.request_state import OutputChunk, SequenceState

# A row and its next output; None: the logits of the row were not numbers.
StepOutput = list[tuple[SequenceState, OutputChunk | None]]


class ModelRunner:
    """The model, and the routing of rows to adapters, which is set up again only when the rows change.

    Attributes: net: the base model, or a PEFT model with all served adapters. pad: id of the pad token.
    """

    def __init__(self, net: Any, pad: int) -> None:
        self.net, self.pad = net, pad
        self._names: list[str] | None = None
        self._routing = ExitStack()
        self._router: AdapterRouter | None = None  # holds stacked copies of the adapters that are in the model now

    def reset_routing(self) -> None:
        """Removes the routing from the layers; must be called before an adapter is added to the model or removed."""
        self._names = self._router = None
        self._routing.close()

    def remove_adapter(self, adapter: str) -> None:
        """Removes an adapter from the model."""
        self.net = hot_swap.hot_remove(self.net, adapter)

    @torch.inference_mode()
    def compute_logits(self, names: list[str], **inputs: torch.Tensor | DynamicCache) -> torch.Tensor:
        """(B, V): logits at each row's last position, float32. Row i is computed with adapter `names[i]`."""
        if names != self._names:
            self._names = None  # stays None if routing raises
            self._routing.close()
            self._router = self._router or AdapterRouter(self.net)
            self._routing.enter_context(mixed_batch.route_rows(self.net, names, self._router))
            self._names = list(names)
        return self.net(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()  # (B, 1, V) → (B, V)

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        return get_input_device(self.net)


class RunningBatch:
    """Sequences that are computed together. Rows join and leave between two steps.

    Attributes: rows: the sequences, in the order of the rows of the cache and the mask.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.rows: list[SequenceState] = []
        self._runner = runner
        self._cache = kv_cache.create_cache()  # keys and values: (B, heads, T, D) a layer
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # (B, T)

    def admit(self, rows: list[SequenceState]) -> StepOutput:
        """Prefills the prompts of new rows together, samples the first token of each, and joins them to the batch."""
        # Rows of one adapter are kept adjacent: they then pass through it as one slice.
        rows = sorted(rows, key=lambda row: row.request.version.internal_name)
        width, device = max(len(row.prompt) for row in rows), self._runner.device
        padded = [[self._runner.pad] * (width - len(row.prompt)) + row.prompt for row in rows]
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        cache = kv_cache.create_cache()
        logits = self._runner.compute_logits(
            [row.request.version.internal_name for row in rows],
            input_ids=torch.tensor(padded, device=device),  # (new rows, width)
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),  # 0 at the first token of each row, whatever its padding
            past_key_values=cache,
        )
        output = _sample_next(rows, logits)
        joining = bool(self.rows)
        self._cache = kv_cache.join_caches(self._cache, cache) if joining else cache
        self._mask = kv_cache.join_masks(self._mask, mask) if joining else mask
        self.rows = [*self.rows, *rows]
        self._drop_ended(output)
        return output

    def step(self) -> StepOutput:
        """Samples the next token of every row."""
        last_tokens = [row.written[-1] for row in self.rows]
        mask = torch.cat([self._mask, self._mask.new_ones(len(last_tokens), 1)], dim=1)  # (B, T + 1)
        logits = self._runner.compute_logits(
            [row.request.version.internal_name for row in self.rows],
            input_ids=torch.tensor(last_tokens, device=mask.device)[:, None],  # (B, 1)
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,  # (B, 1)
            past_key_values=self._cache,
        )
        self._mask = mask
        output = _sample_next(self.rows, logits)
        self._drop_ended(output)
        return output

    def _drop_ended(self, output: StepOutput) -> None:
        ended = {id(row) for row, chunk in output if chunk is None or chunk.finish is not None}
        self.keep_rows([row for row in self.rows if id(row) not in ended])

    def keep_rows(self, rows: list[SequenceState]) -> None:
        """Drops all other rows, and leading positions that are padding in all rows that stay."""
        if len(rows) == len(self.rows):
            return
        kept_ids = {id(row) for row in rows}
        indices = [index for index, row in enumerate(self.rows) if id(row) in kept_ids]
        self.rows = [self.rows[index] for index in indices]
        if not indices:
            self._cache = kv_cache.create_cache()
            return
        mask = self._mask[indices]
        begin = int(mask.any(0).nonzero()[0])  # (rows, T) → (T,) → first position that any row uses
        self._mask, self._cache = mask[:, begin:], kv_cache.select_rows(self._cache, indices, begin)


@torch.inference_mode()
def _sample_next(rows: list[SequenceState], logits: torch.Tensor) -> StepOutput:
    """One token for each row. Args: logits: (rows, V)."""
    # One transfer from the device for all rows: (rows,) each.
    likeliest, valid = logits.argmax(-1).tolist(), (~logits.isnan().any(-1)).tolist()
    return [
        (row, row.sample_next(logits[index], likeliest[index]) if valid[index] else None)
        for index, row in enumerate(rows)
    ]
