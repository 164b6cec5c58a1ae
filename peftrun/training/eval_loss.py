"""The validation loss as one mean over all rows, independent of the batch size."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from peftrun.compat.transformers import average_each_batch, shifts_labels
from peftrun.tasks.length_checks import IGNORE_INDEX


def average_over_rows(trainer: Trainer) -> None:
    """Makes a Trainer report as `eval_loss` the mean over all labels; for preferences and sequence labels, over all rows.

    Its own is the mean over batches of their means, which weights labels unequally: another batch size would select
    another best checkpoint, and stop the training early at another step. And its loader leaves out the rows after the last full
    batch with dataloader_drop_last=true, which is about training rows here.
    """
    prediction_step, evaluation_loop = trainer.prediction_step, trainer.evaluation_loop
    get_eval_dataloader = trainer.get_eval_dataloader
    sums = torch.zeros(2)  # (loss · weight, weight), each summed over the batches of this process

    def predict_weighted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        weight = _count_losses(inputs, shifts_labels(trainer))
        with average_each_batch(trainer):
            output = prediction_step(model, inputs, *args, **kwargs)
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

    def load_all_rows(*args: Any, **kwargs: Any) -> Any:
        drop_last, trainer.args.dataloader_drop_last = trainer.args.dataloader_drop_last, False
        try:
            return get_eval_dataloader(*args, **kwargs)
        finally:
            trainer.args.dataloader_drop_last = drop_last

    trainer.prediction_step, trainer.evaluation_loop = predict_weighted, evaluate_weighted
    trainer.get_eval_dataloader = load_all_rows


def _count_losses(inputs: Any, shifted: bool) -> float:
    """How many losses the mean of a batch is made of; 0 if unknown. Args: shifted: position t predicts the label of t + 1."""
    if not isinstance(inputs, Mapping):
        return 0.0
    labels = inputs.get("labels")
    if labels is None or labels.dim() == 1:  # one loss per row
        return float(len(next(value for value in inputs.values() if torch.is_tensor(value))))
    return float(((labels[:, 1:] if shifted else labels) != IGNORE_INDEX).sum())  # labels: (B, T)
