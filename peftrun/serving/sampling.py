"""From logits to the next tokens of all rows of a batch, each row by the sampling parameters of its request.

Nothing here reads a value back from the device. Shapes: B rows, V vocabulary.
"""

import random
from dataclasses import dataclass, field

import torch


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
    def has_penalty(self) -> bool:
        """Whether the tokens of the prompt or of the answer change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def is_filtered(self) -> bool:
        """Whether only some of the likeliest tokens are drawn from."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


@dataclass(frozen=True)
class SampledToken:
    """A token, its log probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    others: list[tuple[int, float]]


def choose_seed(params: SamplingParams, index: int) -> int:
    """The seed of answer number `index` of a request, as a signed integer of 64 bits; at random if the request has none."""
    seed = random.SystemRandom().getrandbits(64) if params.seed is None else params.seed + index
    return (seed + 2**63) % 2**64 - 2**63


def draw_uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Number `steps` of the random stream of each of `seeds` (int64), uniform in [0, 1): float32, in their shape.

    The streams are SplitMix64's (Steele, Lea and Flood 2014): each number follows from seed and step alone, so an answer draws the same
    whatever shares its batch, and on every device.
    """
    mixed = seeds + (steps + 1) * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number; int64 wraps around
    for shift, factor in (
        (30, -0x40A7B892E31B1A47),
        (27, -0x6B2FB644ECCEEE15),
    ):  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
        mixed = (mixed ^ _shift_right(mixed, shift)) * factor
    # float32 has 24 bits, so that no number is rounded up to 1
    return _shift_right(mixed ^ _shift_right(mixed, 31), 40).float() * 2**-24


def _shift_right(values: torch.Tensor, count: int) -> torch.Tensor:
    """As unsigned integers of 64 bits."""
    return (values >> count) & ((1 << (64 - count)) - 1)


@dataclass(frozen=True)
class Penalties:
    """OpenAI's penalties, which count the tokens of the answer, and transformers' repetition penalty, which counts those of the prompt too.

    Attributes:
        seen: whether a token is in prompt or answer: (B, V).
        counts: how often it is in the answer: (B, V).
        repetition, frequency, presence: (B, 1).
    """

    seen: torch.Tensor
    counts: torch.Tensor
    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor

    def penalize_repetition(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V): by the repetition penalty, which comes before a bias."""
        lower = torch.where(logits < 0, logits * self.repetition, logits / self.repetition)
        return torch.where(self.seen, lower, logits)

    def penalize_counts(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V): by frequency and presence, which come after a bias."""
        return logits - self.frequency * self.counts - self.presence * (self.counts > 0)

    def add_tokens(self, tokens: torch.Tensor) -> None:
        """Counts the new tokens: (B, 1)."""
        self.seen.scatter_(1, tokens, True)
        self.counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=self.counts.dtype))


def draw_tokens(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens drawn by their softmax probabilities, by inverting the cumulative distribution: (B,). Args: scores: (B, V). uniform: (B, 1)."""
    cumulative = scores.softmax(-1).cumsum(-1)  # (B, V)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return index.clamp(max=scores.shape[-1] - 1)[:, 0]


def draw_likeliest(
    scores: torch.Tensor, uniform: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The same from the `top_k` likeliest tokens, and of these from the fewest whose probabilities reach `top_p`: (B,).

    Args: top_k: (B, 1), V for all. top_p: (B, 1), 1 for all. They exclude the tokens that transformers' warpers exclude.
    """
    ordered, tokens = scores.sort(-1)  # ascending, (B, V)
    ordered = ordered.masked_fill(ordered < ordered.gather(1, ordered.shape[-1] - top_k), -torch.inf)
    excluded = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    excluded[:, -1] = False  # the likeliest token stays
    return tokens.gather(1, draw_tokens(ordered.masked_fill(excluded, -torch.inf), uniform)[:, None])[:, 0]
