"""Task type `prompt_only`: rewards for the model's answers to prompts."""

from typing import Any

from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks import generation_metrics, rewards
from peftrun.tasks.rows.prompt_only import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over the greedy answers to evaluation prompts: the mean of each reward, `reward` (their weighted sum), and `loss` (minus `reward`)."""
    objective = task.objective
    assert isinstance(objective, GrpoObjective)
    answers = generation_metrics.generate_greedy(
        model, tokenizer, [row.prompt for row in rows], batch_size, objective.max_completion_length
    )
    means: dict[str, float] = {}
    for name in objective.rewards:
        reward = rewards.get_reward_function(name, objective)
        means[name] = sum(reward(text, row.answer) for text, row in zip(answers, rows, strict=True)) / len(rows)
    weights = objective.reward_weights or [1.0] * len(objective.rewards)
    total = sum(weight * means[name] for name, weight in zip(objective.rewards, weights, strict=True))
    return {"loss": 0.0 - total, "reward": total, **means}  # 0.0 − 0.0 is 0.0, where −0.0 would be printed as -0
