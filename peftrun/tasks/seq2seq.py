"""Kind `seq2seq`: a text in, a text out, by a model with an encoder and a decoder (T5 and its kin)."""

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
    """What makes a batch of training rows; with the model, the decoder's inputs too."""
    return DataCollatorForSeq2Seq(tokenizer, model=model)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out rows.

    Returns:
        loss: nats a token of the target. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the target: every token is the first choice given those before it.
        And what `task.metrics` asks for, see `written.nearness`.
    """
    was_training = model.training
    model.eval()
    batches, total, tokens, exact = collator(tokenizer, model), 0.0, 0, 0
    for start in range(0, len(rows), batch_size):
        part = [{"input_ids": row.ids, "labels": row.target} for row in rows[start : start + batch_size]]
        batch = batches(part).to(get_input_device(model))
        labels = batch.pop("labels")  # with which a model computes its own loss: of AdaLoRA, one that only training has
        logs = model(**batch).logits.float().log_softmax(-1)
        learned = labels != IGNORE_INDEX
        labels = labels.masked_fill(~learned, 0)
        total -= (logs.gather(-1, labels[..., None])[..., 0] * learned).sum().item()
        tokens += int(learned.sum())
        exact += int(((logs.argmax(-1) == labels) | ~learned).all(-1).sum())
    model.train(was_training)
    return {
        "loss": total / tokens,
        "perplexity": math.exp(min(total / tokens, 700.0)),
        "exact_match": exact / len(rows),
    } | generation_metrics.compute_generation_metrics(
        model, tokenizer, [(row.ids, row.target) for row in rows], batch_size, task
    )
