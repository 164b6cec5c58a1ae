"""The validation loss as one mean over all rows, independent of the batch size."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from peftrun.tasks.length_checks import IGNORE_INDEX


def average_over_rows(trainer: Trainer) -> None:
    """Makes a Trainer report as `eval_loss` the mean over all labels; for preferences and sequence labels, over all rows.

    Its own is the mean over batches of their means, which weights labels unequally: another batch size would select
    another best checkpoint, and stop the training early at another step.
    """
    prediction_step, evaluation_loop = trainer.prediction_step, trainer.evaluation_loop
    get_num_items = trainer._get_num_items_in_batch
    sums = torch.zeros(2)  # (loss · weight, weight), each summed over the batches of this process

    def predict_weighted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # How many losses the mean of a batch is made of; 0 if unknown.
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
        if not isinstance(inputs, Mapping):
            weight = 0.0
        elif labels is None or labels.dim() == 1:  # one loss per row
            weight = float(len(next(value for value in inputs.values() if torch.is_tensor(value))))
        else:  # labels: (B, T); if they are shifted, position t predicts the label of t + 1
            weight = float(((labels[:, 1:] if trainer._loss_shifts_labels else labels) != IGNORE_INDEX).sum())
        # Without a count the loss is the batch's own mean; with it, its share of the batches of all processes.
        trainer._get_num_items_in_batch = lambda *_: None
        try:
            output = prediction_step(model, inputs, *args, **kwargs)
        finally:
            trainer._get_num_items_in_batch = get_num_items
        loss = output[0]
        if loss is not None and weight:
            sums.add_(torch.tensor([float(loss) * weight, weight]))
        return output

    def evaluate_weighted(*args: Any, **kwargs: Any) -> Any:
        sums.zero_()
        output = evaluation_loop(*args, **kwargs)
        total, weight = trainer.accelerator.reduce(sums.to(trainer.args.device), "sum").tolist()
        if weight and "eval_loss" in output.metrics:
            output.metrics["eval_loss"] = total / weight
        return output

    trainer.prediction_step, trainer.evaluation_loop = predict_weighted, evaluate_weighted
