"""Continuous batching: sequences that share forward passes, their key-value cache, and one step of all of them.

A step whose rows are those of the step before sends nothing to the device, and reads the new tokens from it, once for all rows.

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
from peftrun.serving.batch_sampler import BatchSampler, SampledBatch
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
    def compute_logits(self, names: list[str], **inputs: torch.Tensor | DynamicCache | None) -> torch.Tensor:
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

    Attributes: rows: the sequences, in the order of the rows of the cache.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.rows: list[SequenceState] = []
        self._runner = runner
        self._cache = kv_cache.create_cache()  # keys and values: (B, heads, T, D) a layer
        # What a step needs of the rows, on the device; None: rows have joined or left since the last step.
        self._inputs: _StepInputs | None = None

    @torch.inference_mode()
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
        output = _add_tokens(rows, BatchSampler(rows, logits).sample(logits))
        if self.rows:
            kv_cache.join_caches(self._cache, cache)
        else:
            self._cache = cache
        self.rows, self._inputs = [*self.rows, *rows], None
        self._drop_ended(output)
        return output

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """Samples the next token of every row."""
        inputs = self._inputs = self._inputs or _StepInputs(self.rows, self._runner.device)
        logits = self._runner.compute_logits(
            inputs.names, **inputs.advance(self._cache.get_seq_length() + 1), past_key_values=self._cache
        )
        inputs.sampler = inputs.sampler or BatchSampler(self.rows, logits)
        sampled = inputs.sampler.sample(logits)
        inputs.tokens = sampled.on_device.to(inputs.tokens.device)
        output = _add_tokens(self.rows, sampled)
        self._drop_ended(output)
        return output

    def _drop_ended(self, output: StepOutput) -> None:
        ended = {id(row) for row, chunk in output if chunk is None or chunk.finish is not None}
        self.keep_rows([row for row in self.rows if id(row) not in ended])

    @torch.inference_mode()
    def keep_rows(self, rows: list[SequenceState]) -> None:
        """Drops all other rows, and leading positions that are padding in all rows that stay."""
        if len(rows) == len(self.rows):
            return
        kept_ids = {id(row) for row in rows}
        order = kv_cache.fill_holes([index for index, row in enumerate(self.rows) if id(row) in kept_ids])
        self.rows, self._inputs = [self.rows[index] for index in order], None
        if self.rows:
            kv_cache.keep_rows(self._cache, order, max(row.num_cached for row in self.rows))
        else:
            self._cache = kv_cache.create_cache()


class _StepInputs:
    """Inputs of the steps of the same rows, which follow from each other on the device.

    Attributes: names: of the rows' adapters. tokens: the latest of each row: (B, 1).
    """

    def __init__(self, rows: list[SequenceState], device: torch.device) -> None:
        self.names = [row.request.version.internal_name for row in rows]
        self.tokens = torch.tensor([[row.written[-1]] for row in rows], device=device)
        self.sampler: BatchSampler | None = None  # made from the first logits
        self._lengths = torch.tensor([[row.num_cached] for row in rows], device=device)  # (B, 1)
        self._is_padded = len({row.num_cached for row in rows}) > 1

    def advance(self, width: int) -> dict[str, torch.Tensor | None]:
        """The model's inputs for one more token of each row. Args: width: T, that token included."""
        positions = self._lengths  # (B, 1): the first token of a row is at 0, whatever its padding
        self._lengths = positions + 1
        mask = None  # where no row is padded, transformers then need not look for padding on the device
        if self._is_padded:
            mask = (torch.arange(width, device=positions.device) >= width - self._lengths).long()  # (B, T)
        return {"input_ids": self.tokens, "attention_mask": mask, "position_ids": positions}


def _add_tokens(rows: list[SequenceState], sampled: SampledBatch) -> StepOutput:
    """Appends its token to each row."""
    return [
        (row, row.add_token(token, sampled.logprobs.get(index)) if token >= 0 else None)
        for index, (row, token) in enumerate(zip(rows, sampled.tokens, strict=True))
    ]
