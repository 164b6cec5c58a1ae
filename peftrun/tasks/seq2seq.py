"""Task type `seq2seq`: text to text, with an encoder-decoder model (T5 and similar)."""

import math
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks import generation_metrics
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.rows.seq2seq import Row, load_rows

__all__ = ["Row", "collator", "evaluate", "load_rows"]


def collator(tokenizer: Any, model: Any = None) -> Any:
    """Data collator for training; with the model, it adds the decoder's inputs."""
    return DataCollatorForSeq2Seq(tokenizer, model=model)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Metrics over evaluation rows.

    Returns:
        loss: nats per target token. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the target: every token has the highest probability, given those before it.
        And `task.metrics`, see `compute_generation_metrics`.
    """
    was_training = model.training
    model.eval()
    collate, total, tokens, exact = collator(tokenizer, model), 0.0, 0, 0
    for start in range(0, len(rows), batch_size):
        batch = collate([{"input_ids": row.ids, "labels": row.target} for row in rows[start : start + batch_size]]).to(
            get_input_device(model)
        )
        # Without labels the model computes no loss: AdaLoRA's would add its orthogonality term, which only training has.
        labels = batch.pop("labels")  # (B, T)
        log_probs = model(**batch).logits.float().log_softmax(-1)  # (B, T, vocab)
        scored = labels != IGNORE_INDEX  # (B, T), false on padding
        labels = labels.masked_fill(~scored, 0)  # gather needs an index within the vocabulary
        total -= (log_probs.gather(-1, labels[..., None])[..., 0] * scored).sum().item()
        tokens += int(scored.sum())
        exact += int(((log_probs.argmax(-1) == labels) | ~scored).all(-1).sum())
    model.train(was_training)
    return {
        "loss": total / tokens,
        "perplexity": math.exp(min(total / tokens, 700.0)),  # e^710 overflows a float
        "exact_match": exact / len(rows),
    } | generation_metrics.compute_generation_metrics(model, tokenizer, rows, batch_size, task)
