"""Kind `prompt_only`: the model answers prompts, and its answers are rewarded."""

from typing import Any

from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks import generation_metrics, rewards
from peftrun.tasks.rows.prompt_only import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over the greedy answers to held-out prompts: `loss` (less is better: minus the reward), `reward` (their weighted sum), and
    the mean of each reward."""
    objective = task.objective
    assert isinstance(objective, GrpoObjective)
    said = generation_metrics.generate_greedy(
        model, tokenizer, [row.prompt for row in rows], batch_size, objective.max_completion_length
    )
    each: dict[str, float] = {
        name: sum(
            rewards.get_reward_function(name, objective)(text, row.answer) for text, row in zip(said, rows, strict=True)
        )
        / len(rows)
        for name in objective.rewards
    }
    weights = objective.reward_weights or [1.0] * len(objective.rewards)
    total = sum(weight * each[name] for name, weight in zip(objective.rewards, weights, strict=True))
    return {"loss": 0.0 - total, "reward": total, **each}
