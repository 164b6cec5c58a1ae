"""From the logits of one answer to its next token, by the sampling parameters of its request. Shapes: V vocabulary."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: 0: all tokens.
        logprobs: how many alternatives to a token are returned with it; None: no log probabilities.
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
        """Whether the argmax of the unchanged logits is taken."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.repetition_penalty != 1.0
        return self.temperature == 0 and not changed


@dataclass(frozen=True)
class SampledToken:
    """A token, its log probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    others: list[tuple[int, float]]


def build_generator(params: SamplingParams, index: int, device: Any) -> torch.Generator | None:
    """The random state of answer number `index` of a request, independent of all others; None if nothing is drawn."""
    if params.temperature == 0:
        return None
    generator = torch.Generator(device=device)
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed((params.seed + index) % 2**63)
    return generator


def sample_token(
    logits: torch.Tensor, prompt: list[int], written: list[int], params: SamplingParams, draws: torch.Generator | None
) -> int:
    """The next token. Args: logits: (V,), float32; they are not changed."""
    scores = _apply_penalties(logits, prompt, written, params)[None]  # (1, V), as transformers' warpers take them
    if draws is None:
        return int(scores.argmax())
    warpers: list[Any] = [TemperatureLogitsWarper(float(params.temperature))]
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(float(params.top_p)))
    for warp in warpers:
        scores = warp(None, scores)
    return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=draws))


def get_top_logprobs(logits: torch.Tensor, token: int, params: SamplingParams) -> SampledToken | None:
    """Log probabilities of a token and its alternatives; None if the request does not want them.

    They are the model's own, before temperature, penalties and bias. Args: logits: (V,), float32.
    """
    if params.logprobs is None:
        return None
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(params.logprobs) if params.logprobs else None
    others = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top else []
    return SampledToken(token, float(logprobs[token]), others)


def _apply_penalties(
    logits: torch.Tensor, prompt: list[int], written: list[int], params: SamplingParams
) -> torch.Tensor:
    """(V,): OpenAI's penalties count the tokens of the answer, transformers' repetition penalty those of the prompt too."""
    if params.repetition_penalty != 1.0:
        ids = torch.tensor([prompt + written], device=logits.device)  # (1, T)
        logits = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(ids, logits[None].clone())[0]
    if not (params.presence_penalty or params.frequency_penalty or params.logit_bias):
        return logits
    logits = logits.clone()
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if written and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(written, device=logits.device), minlength=len(logits))  # (V,)
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    return logits
