"""Rewards of answers: built-in ones, numbers from 0 to 1 computed from an answer and the true answer, and those of the user."""

import json
import re
from collections.abc import Callable

from peftrun.artifacts import function_files
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.tasks import own_functions
from peftrun.tasks.own_functions import Completions


def compute_rewards(name: str, objective: GrpoObjective, completions: Completions) -> list[float]:
    """The reward called `name`, or `FILE.py:FUNCTION`, of each completion. Raises: ConfigError: see `own_functions.compute_rewards`."""
    if function_files.is_reference(name):
        return own_functions.compute_rewards(name, completions)
    score = get_reward_function(name, objective)
    return [score(text, true) for text, true in zip(completions.texts, completions.true_answers, strict=True)]


def get_reward_function(name: str, objective: GrpoObjective) -> Callable[[str, str], float]:
    """The reward called `name`: a function of (answer, true answer)."""
    pattern, target = objective.pattern or "", objective.target_length or 1  # target in characters
    functions: dict[str, Callable[[str, str], float]] = {
        "exact_answer": lambda answer, true: float(_normalize_text(answer) == _normalize_text(true)),
        "contains_answer": lambda answer, true: float(_normalize_text(true) in _normalize_text(answer)),
        "matches_pattern": lambda answer, _: float(re.search(pattern, answer) is not None),
        "valid_json": lambda answer, _: float(_is_json(answer)),
        "near_length": lambda answer, _: max(0.0, 1.0 - abs(len(answer) - target) / target),
    }
    return functions[name]


def _normalize_text(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!\"'")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
