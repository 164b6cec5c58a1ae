"""Task type `unpaired_preference`: answers that are wanted or unwanted."""

from typing import Any

import torch

from peftrun.config.schema.objectives import KtoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.log_likelihood import compare_with_reference
from peftrun.tasks.rows.unpaired_preference import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Metrics over evaluation answers.

    Returns:
        loss: mean of 1 − σ(±beta · log-ratio to the reference model): KTO's with its reference point at 0.
        desirable_log_ratio, undesirable_log_ratio: mean log-ratio of wanted and of unwanted answers, in nats.
        auc: probability that a wanted answer has a higher log-ratio than an unwanted one; a tie counts half.
    """
    _, log_ratios = compare_with_reference(
        model, tokenizer.pad_token_id, [row.prompt for row in rows], [row.completion for row in rows], batch_size
    )
    desirable = torch.tensor([row.desirable for row in rows])  # (rows,), as log_ratios
    beta = task.objective.beta if isinstance(task.objective, KtoObjective) else 1.0
    signs = torch.where(desirable, 1.0, -1.0)
    good, bad = log_ratios[desirable], log_ratios[~desirable]
    gaps = good[:, None] - bad[None]  # (wanted, unwanted)
    return {
        "loss": (1 - torch.sigmoid(signs * beta * log_ratios)).mean().item(),
        "desirable_log_ratio": good.mean().item() if len(good) else 0.0,
        "undesirable_log_ratio": bad.mean().item() if len(bad) else 0.0,
        "auc": ((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean().item() if gaps.numel() else 0.5,
    }
