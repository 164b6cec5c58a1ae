"""What both kinds of classifiers share: batches of rows, and F1."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from peftrun.models.device import get_input_device
from peftrun.tasks.rows.classes import Row


@torch.inference_mode()
def predict_logits(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> Iterator[tuple[Row, torch.Tensor]]:
    """Each row with its logits in float32 on the CPU: (labels,) of a text, (tokens, labels) of words."""
    was_training = model.training
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row.ids))  # rows of like length together: less padding to compute
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [row.ids for row in batch]}, return_tensors="pt").to(
            get_input_device(model)
        )
        found = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits.float().cpu()
        found = found[:, -padded["input_ids"].shape[1] :] if found.dim() == 3 else found  # virtual tokens come first
        for row, mask, logits in zip(batch, padded["attention_mask"].bool().cpu(), found, strict=True):
            yield row, logits[mask] if logits.dim() == 2 else logits
    model.train(was_training)


def f1_score(hits: int, found: int, true: int) -> float:
    """2·hits / (found + true): the harmonic mean of precision and recall; 0 where there is nothing."""
    return 2 * hits / (found + true) if found + true else 0.0


def macro_f1(pairs: Iterable[tuple[int, int]], labels: int) -> float:
    """Mean over labels of their F1, from pairs of (true, answered); a label that occurs on neither side is left out."""
    pairs = list(pairs)
    scores = []
    for label in range(labels):
        true, found = sum(one == label for one, _ in pairs), sum(other == label for _, other in pairs)
        if true + found:
            scores.append(f1_score(sum(one == other == label for one, other in pairs), found, true))
    return sum(scores) / len(scores)
