"""Samples the next token of every row of a batch at once, and brings all of them to the host in one transfer.

Shapes: B rows, V vocabulary, S rows that are drawn, F of them from some of the likeliest tokens, L rows with log probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from peftrun.serving import sampling
from peftrun.serving.request_state import SequenceState
from peftrun.serving.sampling import Penalties, SampledToken


@dataclass(frozen=True)
class SampledBatch:
    """A token for each row.

    Attributes:
        tokens: of each row, on the host; -1: its logits are not numbers.
        logprobs: row → what its request wants to know of the token.
        on_device: the same tokens where the model reads them; any token where the logits are not numbers: (B, 1).
    """

    tokens: list[int]
    logprobs: dict[int, SampledToken]
    on_device: torch.Tensor


class BatchSampler:
    """Sampling parameters and counts of tokens of a batch as tensors. Built when rows join or leave; a step then needs no work for each row."""

    def __init__(self, rows: Sequence[SequenceState], logits: torch.Tensor) -> None:
        """Args: logits: of the rows, for their vocabulary and device: (B, V)."""
        vocabulary, self._device = logits.shape[-1], logits.device
        self._params = [row.sampling for row in rows]
        self._penalties = self._stack_penalties(rows, vocabulary)
        biases = [(index, *bias) for index, one in enumerate(self._params) for bias in one.logit_bias.items()]
        self._biases = [self._tensor(column) for column in zip(*biases, strict=True)]  # row, token, bias
        drawn = [index for index, one in enumerate(self._params) if one.temperature > 0]
        self._drawn = self._tensor(drawn)  # (S,)
        self._temperature = self._tensor([[float(self._params[index].temperature)] for index in drawn])  # (S, 1)
        self._seeds = self._tensor([[rows[index].seed] for index in drawn])  # (S, 1)
        self._steps = self._tensor([[len(rows[index].written)] for index in drawn])  # (S, 1)
        free = [place for place, index in enumerate(drawn) if not self._params[index].is_filtered]
        filtered = [place for place, index in enumerate(drawn) if self._params[index].is_filtered]
        self._free, self._filtered = self._tensor(free), self._tensor(filtered)  # (S - F,), (F,): places in `_drawn`
        chosen = [self._params[drawn[place]] for place in filtered]
        self._top_k = self._tensor([[min(one.top_k or vocabulary, vocabulary)] for one in chosen])  # (F, 1)
        self._top_p = self._tensor([[float(one.top_p)] for one in chosen])  # (F, 1)
        self._reported = [index for index, one in enumerate(self._params) if one.logprobs is not None]
        self._reported_rows = self._tensor(self._reported)  # (L,)

    def sample(self, logits: torch.Tensor) -> SampledBatch:
        """The next tokens. Args: logits: (B, V), float32; they are not changed."""
        largest, likeliest = logits.max(-1)  # (B,) each; NaN is larger than any number
        scores = self._change_scores(logits)
        tokens = likeliest if scores is logits else scores.argmax(-1)
        if len(self._drawn):
            tokens = tokens.index_copy(0, self._drawn, self._draw(scores))
        on_device = tokens[:, None]
        if self._penalties:
            self._penalties.add_tokens(on_device)
        self._steps += 1
        tokens = tokens.masked_fill(largest.isnan(), -1)
        if not self._reported:
            return SampledBatch(tokens.tolist(), {}, on_device)
        return self._report(logits, tokens, on_device)

    def _change_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V): after penalties and biases."""
        scores = self._penalties.penalize_repetition(logits) if self._penalties else logits
        if self._biases:
            rows, tokens, biases = self._biases
            scores = scores.index_put((rows, tokens), biases, accumulate=True)
        return self._penalties.penalize_counts(scores) if self._penalties else scores

    def _draw(self, scores: torch.Tensor) -> torch.Tensor:
        """(S,): tokens of the rows that are drawn."""
        scores = scores.index_select(0, self._drawn) / self._temperature  # (S, V)
        uniform = sampling.draw_uniform(self._seeds, self._steps)  # (S, 1)
        if not len(self._filtered):
            return sampling.draw_tokens(scores, uniform)
        tokens = self._drawn.new_empty(len(self._drawn))
        likeliest, draws = scores.index_select(0, self._filtered), uniform.index_select(0, self._filtered)
        tokens.index_copy_(0, self._filtered, sampling.draw_likeliest(likeliest, draws, self._top_k, self._top_p))
        if len(self._free):
            draws = uniform.index_select(0, self._free)
            tokens.index_copy_(0, self._free, sampling.draw_tokens(scores.index_select(0, self._free), draws))
        return tokens

    def _report(self, logits: torch.Tensor, tokens: torch.Tensor, on_device: torch.Tensor) -> SampledBatch:
        """Adds log probabilities: the model's own, before temperature, penalties and bias."""
        counts = [self._params[index].logprobs or 0 for index in self._reported]
        logprobs = logits.index_select(0, self._reported_rows).log_softmax(-1)  # (L, V)
        chosen = logprobs.gather(1, on_device.index_select(0, self._reported_rows))  # (L, 1)
        top = logprobs.topk(max(counts), dim=-1)  # (L, most alternatives)
        # bits of float32 and of int32 beside each other, so that one transfer brings all
        numbers = torch.cat([chosen, top.values], dim=1).view(torch.int32).flatten()
        packed = torch.cat([tokens.int(), numbers, top.indices.int().flatten()]).cpu().numpy()
        ids = packed[: len(tokens)].tolist()
        values, others = np.split(packed[len(tokens) :], [len(numbers)])
        values, others = values.view(np.float32).reshape(len(counts), -1), others.reshape(len(counts), -1)
        found = {}
        for place, (index, count) in enumerate(zip(self._reported, counts, strict=True)):
            chosen_value, *alternatives = values[place, : count + 1].tolist()
            pairs = list(zip(others[place, :count].tolist(), alternatives, strict=True))
            found[index] = SampledToken(ids[index], chosen_value, pairs)
        return SampledBatch(ids, found, on_device)

    def _stack_penalties(self, rows: Sequence[SequenceState], vocabulary: int) -> Penalties | None:
        """Counts of all rows; those of each row are a part of the batch's from then on, so that the next batch finds them up to date."""
        if not any(one.has_penalty for one in self._params):
            return None
        for row in rows:
            if row.token_counts is None:
                row.token_counts = self._count_tokens(row, vocabulary)
        seen, counts = (torch.stack([row.token_counts[part] for row in rows]) for part in range(2))  # type: ignore[index]
        for index, row in enumerate(rows):
            row.token_counts = seen[index], counts[index]
        columns = zip(*([one.repetition_penalty, one.frequency_penalty, one.presence_penalty] for one in self._params), strict=True)  # fmt: skip
        factors = [self._tensor([[float(value)] for value in column]) for column in columns]
        return Penalties(seen, counts, *factors)

    def _count_tokens(self, row: SequenceState, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each token is in a row, and how often in its answer: (V,) each."""
        seen = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
        # a prompt may hold ids beyond the logits: of rows of the embeddings that pad the vocabulary
        inside = [token for token in {*row.prompt, *row.written} if token < vocabulary]
        seen[self._tensor(inside).long()] = True
        counts = torch.bincount(self._tensor(row.written).long(), minlength=vocabulary)
        return seen, counts.int()

    def _tensor(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)
