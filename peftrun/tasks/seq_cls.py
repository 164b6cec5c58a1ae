"""Kind `seq_cls`: a text has one label."""

from typing import Any

import torch
from transformers import DataCollatorWithPadding

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.classification import macro_f1, predict_logits
from peftrun.tasks.rows.classes import Row
from peftrun.tasks.rows.seq_cls import load_rows

__all__ = ["Row", "collator", "detailed", "evaluate", "load_rows"]


def collator(tokenizer: Any) -> Any:
    """What makes a batch of training rows."""
    return DataCollatorWithPadding(tokenizer)


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out rows: `loss` (mean nats a row), `accuracy`, `macro_f1` (mean of the labels' F1)."""
    return detailed(model, tokenizer, rows, batch_size, task)[0]


def detailed(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    """What `evaluate` gives; and `confusion`: how many rows of each label (a line each) were given each label (a column each)."""
    total, pairs, labels = 0.0, [], 0
    for row, logits in predict_logits(model, tokenizer, rows, batch_size):
        true, labels = int(row.labels), len(logits)
        total -= torch.log_softmax(logits, -1)[true].item()
        pairs.append((true, int(logits.argmax())))
    right = sum(one == other for one, other in pairs)
    found = {"loss": total / len(pairs), "accuracy": right / len(pairs), "macro_f1": macro_f1(pairs, labels)}
    counts = [[pairs.count((true, answered)) for answered in range(labels)] for true in range(labels)]
    return found, {"confusion": {"labels": task.label_names, "counts": counts}}
