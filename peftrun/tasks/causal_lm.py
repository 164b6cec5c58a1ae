"""Task type `causal_lm`: completions of a language model. Metrics on evaluation rows."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from peftrun.adapters import mixed_batch, traits
from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks import end_tokens, generation_metrics
from peftrun.tasks.log_likelihood import pad_rows
from peftrun.tasks.rows.causal_lm import Row, load_rows

__all__ = ["Row", "RowScore", "compute_metrics", "evaluate", "load_rows", "score_rows"]


@dataclass(frozen=True)
class RowScore:
    """Scores of one row: nats and tokens of the true completion, whether greedy decoding yields it, whether it is the likeliest choice."""

    row: Row
    nats: float
    tokens: int
    exact: bool
    chosen: bool


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Means over evaluation rows, see `compute_metrics`, and `task.metrics`, see `compute_generation_metrics`."""
    metrics = compute_metrics(score_rows(model, tokenizer, rows, batch_size))
    return metrics | generation_metrics.compute_generation_metrics(model, tokenizer, rows, batch_size, task)


@torch.inference_mode()
def score_rows(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> list[RowScore]:
    """Scores of each row under the adapter that it names, ordered by prompt length.

    One teacher-forced pass suffices for the exact match too: greedy decoding yields a completion exactly if each of its tokens has the
    highest probability, given those before it.
    """
    was_training, ends = model.training, end_tokens.find_end_tokens(model, tokenizer)
    model.eval()
    row_scores = []
    rows = [replace(row, candidates=[end_tokens.cut_at_end_token(ids, ends) for ids in row.candidates]) for row in rows]
    rows = sorted(rows, key=lambda row: len(row.prompt))  # similar lengths together: less padding
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with mixed_batch.route_rows(model, [row.adapter for row in batch]):
            score = _score_full_sequences if traits.needs_whole_sequence(model) else _score_with_cache
            batch_scores = score(model, batch, tokenizer.pad_token_id)
        for row, scores in zip(batch, batch_scores, strict=True):
            likeliest = min(range(len(scores)), key=lambda k: scores[k][0])
            row_scores.append(RowScore(row, *scores[row.answer], likeliest == row.answer))
    model.train(was_training)
    return row_scores


def compute_metrics(scores: list[RowScore]) -> dict[str, float]:
    """Means over rows.

    Returns:
        loss: nats per completion token. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the true completion, up to its end token.
        choice_accuracy: share of rows whose true completion is the likeliest of its choices; only if there are choices.
    """
    loss = sum(score.nats for score in scores) / sum(score.tokens for score in scores)
    exact = sum(score.exact for score in scores) / len(scores)
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "exact_match": exact}  # e^710 overflows a float
    if len(scores[0].row.candidates) > 1:
        metrics["choice_accuracy"] = sum(score.chosen for score in scores) / len(scores)
    return metrics


def _score_with_cache(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """For each row and candidate: negative log-likelihood in nats, number of tokens, whether greedy decoding yields it.

    Prompts are computed once, padded on the left; each candidate continues from a copy of their cache.
    """
    ids, mask = pad_rows([row.prompt for row in rows], pad, get_input_device(model), left=True)  # (B, P)
    start = model(
        input_ids=ids, attention_mask=mask, position_ids=_build_position_ids(mask), use_cache=True, logits_to_keep=1
    )
    scores = []
    for k in range(len(rows[0].candidates)):
        candidates = [row.candidates[k] for row in rows]
        ids, _ = pad_rows(candidates, pad, get_input_device(model))  # (B, C)
        logits = start.logits[:, -1:]  # (B, 1, vocab): the prompt's last token scores the candidate's first
        if ids.shape[1] > 1:
            # Padding after a candidate may be attended to: the positions that are scored come before it.
            full_mask = torch.cat([mask, torch.ones_like(ids[:, 1:])], dim=1)  # (B, P + C − 1)
            output = model(
                input_ids=ids[:, :-1],
                attention_mask=full_mask,
                position_ids=_build_position_ids(full_mask)[:, mask.shape[1] :],
                past_key_values=copy.deepcopy(start.past_key_values),  # the model appends to it in place
                use_cache=True,
            )
            logits = torch.cat([logits, output.logits], dim=1)  # (B, C, vocab)
        scores.append(
            [_score_tokens(logits[i, : len(tokens)], ids[i, : len(tokens)]) for i, tokens in enumerate(candidates)]
        )
    return [list(row_scores) for row_scores in zip(*scores, strict=True)]  # by candidate → by row


def _score_tokens(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, int, bool]:
    """Args: logits: (tokens, vocab). ids: (tokens,)."""
    log_probs = logits.float().log_softmax(-1)
    nats = -log_probs.gather(-1, ids[:, None]).sum()
    return nats.item(), len(ids), bool((log_probs.argmax(-1) == ids).all())


def _score_full_sequences(model: Any, rows: list[Row], pad: int) -> list[list[tuple[float, int, bool]]]:
    """The same for adapters that must see the whole sequence: prompt and candidate in one pass, without a cache."""
    scores = []
    for k in range(len(rows[0].candidates)):
        sequences = [row.prompt + row.candidates[k] for row in rows]
        ids, mask = pad_rows(sequences, pad, get_input_device(model))  # (B, T)
        # Logits of virtual tokens, if any, come first: (B, virtual tokens + T, vocab) → (B, T, vocab).
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
        spans = [(len(row.prompt), len(sequence)) for row, sequence in zip(rows, sequences, strict=True)]
        # Logits at position t score token t + 1.
        scores.append([_score_tokens(logits[i, a - 1 : b - 1], ids[i, a:b]) for i, (a, b) in enumerate(spans)])
    return [list(row_scores) for row_scores in zip(*scores, strict=True)]  # by candidate → by row


def _build_position_ids(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T); left padding gets position 0
