"""Task type `seq_cls`: one label per text."""

from typing import Any

import torch
from transformers import DataCollatorWithPadding

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.classification import macro_f1, predict_logits
from peftrun.tasks.rows.classes import Row
from peftrun.tasks.rows.seq_cls import load_rows

__all__ = ["Row", "collator", "evaluate", "evaluate_in_detail", "load_rows"]


def collator(tokenizer: Any) -> Any:
    """Data collator for training."""
    return DataCollatorWithPadding(tokenizer)


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Metrics over evaluation rows: `loss` (mean nats per row), `accuracy`, `macro_f1` (mean of the labels' F1)."""
    return evaluate_in_detail(model, tokenizer, rows, batch_size, task)[0]


def evaluate_in_detail(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of `evaluate`, and `confusion`: counts with a line per true label and a column per predicted label."""
    total, pairs, labels = 0.0, [], 0
    for row, logits in predict_logits(model, tokenizer, rows, batch_size):
        true, labels = int(row.labels), len(logits)  # logits: (labels,)
        total -= torch.log_softmax(logits, -1)[true].item()
        pairs.append((true, int(logits.argmax())))
    correct = sum(true == predicted for true, predicted in pairs)
    metrics = {"loss": total / len(pairs), "accuracy": correct / len(pairs), "macro_f1": macro_f1(pairs, labels)}
    counts = [[pairs.count((true, predicted)) for predicted in range(labels)] for true in range(labels)]
    return metrics, {"confusion": {"labels": task.label_names, "counts": counts}}
