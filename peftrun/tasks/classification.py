"""Shared by both types of classifiers: logits in batches, and F1."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from peftrun.models.device import get_input_device
from peftrun.tasks.rows.classes import Row


@torch.inference_mode()
def predict_logits(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> Iterator[tuple[Row, torch.Tensor]]:
    """Yields each row with its logits in float32 on the CPU: (labels,) of a text, (tokens, labels) of words."""
    was_training = model.training
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row.ids))  # similar lengths together: less padding
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [row.ids for row in batch]}, return_tensors="pt").to(
            get_input_device(model)
        )
        ids, masks = padded["input_ids"], padded["attention_mask"]  # (B, T)
        batch_logits = model(input_ids=ids, attention_mask=masks).logits.float().cpu()
        if batch_logits.dim() == 3:  # (B, virtual tokens + T, labels) → (B, T, labels)
            batch_logits = batch_logits[:, -ids.shape[1] :]
        for row, mask, logits in zip(batch, masks.bool().cpu(), batch_logits, strict=True):
            yield row, logits[mask] if logits.dim() == 2 else logits  # without padding
    model.train(was_training)


def f1_score(hits: int, predicted: int, true: int) -> float:
    """2·hits / (predicted + true): the harmonic mean of precision and recall; 0 if there are none of either."""
    return 2 * hits / (predicted + true) if predicted + true else 0.0


def macro_f1(pairs: Iterable[tuple[int, int]], labels: int) -> float:
    """Mean F1 over labels, from pairs of (true, predicted); a label that is neither true nor predicted is left out."""
    pairs = list(pairs)
    scores = []
    for label in range(labels):
        true, predicted = sum(a == label for a, _ in pairs), sum(b == label for _, b in pairs)
        if true + predicted:
            scores.append(f1_score(sum(a == b == label for a, b in pairs), predicted, true))
    return sum(scores) / len(scores)
