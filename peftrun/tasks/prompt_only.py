"""Task type `prompt_only`: rewards for the model's answers to prompts."""

from typing import Any

from peftrun.artifacts import function_files
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks import generation_metrics, rewards
from peftrun.tasks.own_functions import Completions
from peftrun.tasks.rows.prompt_only import Row, load_rows

__all__ = ["Row", "evaluate", "load_rows"]


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over the greedy answers to evaluation prompts: the mean of each reward, `reward` (their weighted sum), and `loss` (minus `reward`)."""
    objective = task.objective
    assert isinstance(objective, GrpoObjective)
    ids = generation_metrics.generate_greedy_ids(
        model, tokenizer, [row.prompt for row in rows], batch_size, objective.max_completion_length
    )
    texts = [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    columns, prompts, wheres = ([getattr(row, name) for row in rows] for name in ("columns", "spelled", "where"))
    completions = Completions(texts, ids, [row.answer for row in rows], columns, prompts, wheres)
    means = {
        function_files.get_name(name): sum(rewards.compute_rewards(name, objective, completions)) / len(rows)
        for name in objective.rewards
    }
    weights = objective.reward_weights or [1.0] * len(objective.rewards)
    total = sum(weight * mean for weight, mean in zip(weights, means.values(), strict=True))
    return {"loss": 0.0 - total, "reward": total, **means}  # 0.0 − 0.0 is 0.0, where −0.0 would be printed as -0
