"""Kind `preference`: of two answers to a prompt one was chosen."""

from typing import Any

import torch

from peftrun.config.schema.objectives import DpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks.log_likelihood import compare_with_base
from peftrun.tasks.rows.preference import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]

TIE = 0.5  # how a pair counts that the model does not tell apart


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out pairs, for a reward model or a language model.

    Returns:
        loss: mean of −log σ(beta · margin).
        preference_accuracy: share of pairs with a positive margin; a tie counts half.
        margin: mean of how much more the chosen answer gains over the base than the rejected one, in nats; of a reward
            model, the difference of their rewards.
        likelihood_accuracy: share of pairs whose chosen answer is the likelier one, a token of each taken.
    """
    if _is_reward_model(model):
        return _compute_metrics(_compute_reward_margins(model, tokenizer, rows, batch_size), 1.0)
    prompts = [row.prompt for row in rows]
    pad = tokenizer.pad_token_id
    chosen, gained = compare_with_base(model, pad, prompts, [row.chosen for row in rows], batch_size)
    rejected, lost = compare_with_base(model, pad, prompts, [row.rejected for row in rows], batch_size)
    likelier = chosen / torch.tensor([len(row.chosen) for row in rows]) > rejected / torch.tensor(
        [len(row.rejected) for row in rows]
    )
    beta = task.objective.beta if isinstance(task.objective, DpoObjective) else 1.0
    return _compute_metrics(gained - lost, beta) | {"likelihood_accuracy": likelier.float().mean().item()}


def _compute_metrics(margins: torch.Tensor, beta: float) -> dict[str, float]:
    right = (margins > 0).float() + TIE * (margins == 0).float()
    return {
        "loss": -torch.nn.functional.logsigmoid(margins * beta).mean().item(),
        "preference_accuracy": right.mean().item(),
        "margin": margins.mean().item(),
    }


def _is_reward_model(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.endswith("ForSequenceClassification")


@torch.inference_mode()
def _compute_reward_margins(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> torch.Tensor:
    """Reward of the chosen answer less that of the rejected one: (pairs,)."""
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        both = [row.prompt + row.chosen for row in part] + [row.prompt + row.rejected for row in part]
        padded = tokenizer.pad({"input_ids": both}, padding_side="right", return_tensors="pt").to(
            get_input_device(model)
        )
        scores = (
            model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0].float().cpu()
        )
        found.append(scores[: len(part)] - scores[len(part) :])
    model.train(was_training)
    return torch.cat(found)
