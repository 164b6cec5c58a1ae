"""Kind `unpaired_preference`: an answer to a prompt was good, or was not."""

from typing import Any

import torch

from peftrun.config.schema.objectives import KtoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.log_likelihood import compare_with_base
from peftrun.tasks.rows.unpaired_preference import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out answers.

    Returns:
        loss: mean of 1 − σ(±beta · log-ratio to the base), KTO's with its reference point at 0.
        desirable_log_ratio, undesirable_log_ratio: mean nats that the model has gained over its base on answers of each kind.
        auc: chance that a wanted answer has gained more than an unwanted one; a tie counts half.
    """
    _, gained = compare_with_base(
        model, tokenizer.pad_token_id, [row.prompt for row in rows], [row.completion for row in rows], batch_size
    )
    wanted = torch.tensor([row.desirable for row in rows])
    signs = torch.where(wanted, 1.0, -1.0) * (task.objective.beta if isinstance(task.objective, KtoObjective) else 1.0)
    good, bad = gained[wanted], gained[~wanted]
    apart = good[:, None] - bad[None]
    return {
        "loss": (1 - torch.sigmoid(signs * gained)).mean().item(),
        "desirable_log_ratio": good.mean().item() if len(good) else 0.0,
        "undesirable_log_ratio": bad.mean().item() if len(bad) else 0.0,
        "auc": ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item() if apart.numel() else 0.5,
    }
