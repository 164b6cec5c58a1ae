"""From the logits of one answer to its next token, as its request asked."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class SamplingParams:
    """How an answer's tokens are chosen; `temperature` 0 takes the likeliest each time.

    Attributes:
        logprobs: how many alternatives are told beside each token; None: no log probabilities at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken as the model gives it."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.repetition_penalty != 1.0
        return self.temperature == 0 and not changed


@dataclass(frozen=True)
class SampledToken:
    """A token, its log probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    others: list[tuple[int, float]]


def build_generator(sampling: SamplingParams, number: int, device: Any) -> torch.Generator | None:
    """The draws of answer `number` of a request, its own; None for one that draws nothing."""
    if sampling.temperature == 0:
        return None
    found = torch.Generator(device=device)
    if sampling.seed is None:
        found.seed()
    else:
        found.manual_seed((sampling.seed + number) % 2**63)
    return found


def sample_token(
    logits: torch.Tensor, prompt: list[int], written: list[int], how: SamplingParams, draws: torch.Generator | None
) -> int:
    """The next token. `logits`: of the whole vocabulary, float32."""
    scores = _apply_penalties(logits, prompt, written, how)[None]
    if draws is None:
        return int(scores.argmax())
    for warp in _build_warpers(how):
        scores = warp(None, scores)
    return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=draws))


def get_top_logprobs(logits: torch.Tensor, token: int, how: SamplingParams) -> SampledToken | None:
    """What the model itself gave the token and its rivals, before anything the request asked for; None where nobody asks."""
    if how.logprobs is None:
        return None
    found = logits.log_softmax(-1)
    top = found.topk(how.logprobs) if how.logprobs else None
    others = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top else []
    return SampledToken(token, float(found[token]), others)


def _build_warpers(how: SamplingParams) -> list[Any]:
    found: list[Any] = [TemperatureLogitsWarper(float(how.temperature))]
    if how.top_k > 0:
        found.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        found.append(TopPLogitsWarper(float(how.top_p)))
    return found


def _apply_penalties(logits: torch.Tensor, prompt: list[int], written: list[int], how: SamplingParams) -> torch.Tensor:
    """Penalties as OpenAI defines them count what was written; the repetition penalty of transformers also the prompt."""
    if how.repetition_penalty != 1.0:
        read = torch.tensor([prompt + written], device=logits.device)
        logits = RepetitionPenaltyLogitsProcessor(float(how.repetition_penalty))(read, logits[None].clone())[0]
    if not (how.presence_penalty or how.frequency_penalty or how.logit_bias):
        return logits
    logits = logits.clone()
    for token, bias in how.logit_bias.items():
        logits[token] += bias
    if written and (how.presence_penalty or how.frequency_penalty):
        times = torch.bincount(torch.tensor(written, device=logits.device), minlength=len(logits))
        logits -= how.frequency_penalty * times + how.presence_penalty * (times > 0)
    return logits
