"""Kind `causal_lm`: a language model learns completions. What is measured on held-out rows."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from peftrun.adapters import mixed_batch, traits
from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks import end_tokens, generation_metrics
from peftrun.tasks.rows.causal_lm import Row, load_rows

__all__ = ["Row", "RowScore", "compute_metrics", "evaluate", "load_rows", "score_rows"]


@dataclass(frozen=True)
class RowScore:
    """What was measured on one row: nats and tokens of the true completion, whether it is the greedy one, and the likeliest."""

    row: Row
    nats: float
    tokens: int
    exact: bool
    chosen: bool


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Means over held-out rows, see `metrics`; and how near written answers are, see `written.nearness`."""
    found = compute_metrics(score_rows(model, tokenizer, rows, batch_size))
    pairs = [(row.prompt, row.completion) for row in rows]
    return found | generation_metrics.compute_generation_metrics(model, tokenizer, pairs, batch_size, task)


@torch.inference_mode()
def score_rows(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> list[RowScore]:
    """Each row measured, by the adapter that it names. Greedy decoding yields a completion exactly if its every token is
    the first choice given those before it, so one teacher-forced pass tells."""
    was_training, last = model.training, end_tokens.find_end_tokens(model, tokenizer)
    model.eval()
    found = []
    ending = [
        replace(row, candidates=[end_tokens.cut_at_end_token(ids, last) for ids in row.candidates]) for row in rows
    ]
    for batch in _batch_by_length(ending, batch_size):
        with mixed_batch.route_rows(model, [row.adapter for row in batch]):
            each = (_score_full_sequences if traits.needs_whole_sequence(model) else _score_with_cache)(
                model, batch, tokenizer.pad_token_id
            )
        for row, scores in zip(batch, each, strict=True):
            likeliest = min(range(len(scores)), key=lambda k: scores[k][0])
            found.append(RowScore(row, *scores[row.answer], likeliest == row.answer))
    model.train(was_training)
    return found


def compute_metrics(scores: list[RowScore]) -> dict[str, float]:
    """Means over rows.

    Returns:
        loss: nats a completion token. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the true completion, up to its end token.
        choice_accuracy: share of rows whose true completion is the likeliest of its choices; where there are choices.
    """
    loss = sum(one.nats for one in scores) / sum(one.tokens for one in scores)
    exact = sum(one.exact for one in scores) / len(scores)
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "exact_match": exact}
    chosen = sum(one.chosen for one in scores) / len(scores)
    return found | ({"choice_accuracy": chosen} if len(scores[0].row.candidates) > 1 else {})


def _batch_by_length(rows: list[Row], size: int) -> Iterator[list[Row]]:
    # Rows of like length together: less padding to compute.
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _score_with_cache(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """For each row and candidate: its negative log-likelihood in nats, its tokens, whether greedy decoding yields it.

    Prompts are computed once, padded on the left; each candidate continues from a copy of their cache.
    """
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows], device=get_input_device(model))
    mask = torch.tensor(
        [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=get_input_device(model)
    )
    start = model(
        input_ids=ids, attention_mask=mask, position_ids=_build_position_ids(mask), use_cache=True, logits_to_keep=1
    )
    count = len(rows[0].candidates)
    scores = [_score_candidates(model, [row.candidates[k] for row in rows], pad, mask, start) for k in range(count)]
    return [[scores[k][i] for k in range(count)] for i in range(len(rows))]


def _score_candidates(
    model: Any, candidates: list[list[int]], pad: int, mask: torch.Tensor, start: Any
) -> list[tuple[float, int, bool]]:
    lengths = [len(ids) for ids in candidates]
    width = max(lengths)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in candidates], device=get_input_device(model))
    logits = start.logits[:, -1:]
    if width > 1:
        longer = torch.cat([mask, torch.ones_like(ids[:, 1:])], dim=1)
        more = model(
            input_ids=ids[:, :-1],
            attention_mask=longer,
            position_ids=_build_position_ids(longer)[:, -(width - 1) :],
            past_key_values=copy.deepcopy(start.past_key_values),
            use_cache=True,
        )
        logits = torch.cat([logits, more.logits], dim=1)
    return [_score_tokens(logits[i, :n], ids[i, :n]) for i, n in enumerate(lengths)]


def _score_tokens(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, int, bool]:
    logs = logits.float().log_softmax(-1)
    nats = -logs.gather(-1, ids[:, None]).sum()
    return nats.item(), len(ids), bool((logs.argmax(-1) == ids).all())


def _score_full_sequences(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """The same for adapters that must see a row in one piece: prompt and candidate in one pass, each candidate of its own."""
    scores = []
    for k in range(len(rows[0].candidates)):
        both = [row.prompt + row.candidates[k] for row in rows]
        width = max(map(len, both))
        ids = torch.tensor([one + [pad] * (width - len(one)) for one in both], device=get_input_device(model))
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in both], device=get_input_device(model))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
        spans = [(len(row.prompt), len(one)) for row, one in zip(rows, both, strict=True)]
        scores.append([_score_tokens(logits[i, a - 1 : b - 1], ids[i, a:b]) for i, (a, b) in enumerate(spans)])
    return [list(each) for each in zip(*scores, strict=True)]


def _build_position_ids(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
