"""Rewards computed from an answer alone, or from it and the true answer. Each is a number from 0 to 1."""

import json
import re
from collections.abc import Callable

from peftrun.config.schema.objectives import GrpoObjective


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
