"""Task type `preference`: two answers to a prompt, one of them chosen."""

from typing import Any

import torch

from peftrun.compat.peft import get_base_model
from peftrun.config.schema.objectives import DpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.models.device import get_input_device
from peftrun.tasks.log_likelihood import compare_with_reference
from peftrun.tasks.rows.preference import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]

TIE = 0.5  # accuracy of a pair with a margin of 0


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Metrics over evaluation pairs, for a reward model or a language model.

    Returns:
        loss: mean of −log σ(beta · margin).
        preference_accuracy: share of pairs with a positive margin; a tie counts half.
        margin: mean difference of the log-ratios to the reference model, chosen minus rejected, in nats; for a reward model,
            of the rewards.
        likelihood_accuracy: share of pairs whose chosen answer has the higher log-likelihood per token.
    """
    inner = get_base_model(model)
    if type(inner).__name__.endswith("ForSequenceClassification"):  # a reward model
        return _compute_metrics(_compute_reward_margins(model, tokenizer, rows, batch_size), 1.0)
    prompts = [row.prompt for row in rows]
    pad = tokenizer.pad_token_id
    # All tensors below are (pairs,).
    chosen, chosen_ratio = compare_with_reference(model, pad, prompts, [row.chosen for row in rows], batch_size)
    rejected, rejected_ratio = compare_with_reference(model, pad, prompts, [row.rejected for row in rows], batch_size)
    likelier = chosen / torch.tensor([len(row.chosen) for row in rows]) > rejected / torch.tensor(
        [len(row.rejected) for row in rows]
    )
    beta = task.objective.beta if isinstance(task.objective, DpoObjective) else 1.0
    return _compute_metrics(chosen_ratio - rejected_ratio, beta) | {
        "likelihood_accuracy": likelier.float().mean().item()
    }


def _compute_metrics(margins: torch.Tensor, beta: float) -> dict[str, float]:
    """Args: margins: (pairs,)."""
    accuracy = (margins > 0).float() + TIE * (margins == 0).float()
    return {
        "loss": -torch.nn.functional.logsigmoid(margins * beta).mean().item(),
        "preference_accuracy": accuracy.mean().item(),
        "margin": margins.mean().item(),
    }


@torch.inference_mode()
def _compute_reward_margins(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> torch.Tensor:
    """Reward of the chosen answer minus reward of the rejected one: (pairs,)."""
    was_training = model.training
    model.eval()
    margins = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        # One pass over (2·B, T): first the chosen answers, then the rejected ones.
        texts = [row.prompt + row.chosen for row in batch] + [row.prompt + row.rejected for row in batch]
        padded = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt").to(
            get_input_device(model)
        )
        logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits  # (2·B, 1)
        rewards = logits[:, 0].float().cpu()
        margins.append(rewards[: len(batch)] - rewards[len(batch) :])  # (B,)
    model.train(was_training)
    return torch.cat(margins)
