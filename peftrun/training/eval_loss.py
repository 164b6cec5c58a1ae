"""The loss on validation rows: one mean over all of them, whatever the size of their batches."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from peftrun.tasks.length_checks import IGNORE_INDEX


def average_over_rows(trainer: Trainer) -> None:
    """Has a Trainer tell as `eval_loss` the mean over all labels; of preferences and of texts with one label, over all rows.

    Its own is the mean over batches of their means: batches of another size would choose another checkpoint, and end the training elsewhere.
    """
    measure, evaluate, count = trainer.prediction_step, trainer.evaluation_loop, trainer._get_num_items_in_batch
    total = torch.zeros(2)  # loss times weight, weight

    def predict_weighted(model: Any, inputs: Any, *given: Any, **how: Any) -> Any:
        weight = _count_losses(inputs, trainer._loss_shifts_labels)
        trainer._get_num_items_in_batch = lambda *_: (
            None
        )  # the batch's own mean, not its share of all processes' batches
        try:
            found = measure(model, inputs, *given, **how)
        finally:
            trainer._get_num_items_in_batch = count
        if found[0] is not None and weight:
            total.add_(torch.tensor([float(found[0]) * weight, weight]))
        return found

    def evaluate_weighted(*given: Any, **how: Any) -> Any:
        total.zero_()
        found = evaluate(*given, **how)
        whole, weight = trainer.accelerator.reduce(total.to(trainer.args.device), "sum").tolist()
        if weight and "eval_loss" in found.metrics:
            found.metrics["eval_loss"] = whole / weight
        return found

    trainer.prediction_step, trainer.evaluation_loop = predict_weighted, evaluate_weighted


def _count_losses(inputs: Any, shifted: bool) -> float:
    """How many losses the mean of a batch is one of; 0 where that cannot be told."""
    if not isinstance(inputs, Mapping):
        return 0.0
    labels = inputs.get("labels")
    if labels is None or labels.dim() == 1:
        return float(len(next(one for one in inputs.values() if torch.is_tensor(one))))
    return float(((labels[:, 1:] if shifted else labels) != IGNORE_INDEX).sum())
