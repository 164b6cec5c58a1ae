"""Rewards that can be computed from an answer alone, or from it and the true one. Each is a number from 0 to 1."""

import json
import re
from collections.abc import Callable

from peftrun.config.schema.objectives import GrpoObjective


def get_reward_function(name: str, objective: GrpoObjective) -> Callable[[str, str], float]:
    """The reward called `name`: a function of (what was answered, the true answer)."""
    pattern, target = objective.pattern or "", objective.target_length or 1
    made: dict[str, Callable[[str, str], float]] = {
        "exact_answer": lambda said, true: float(_normalize_text(said) == _normalize_text(true)),
        "contains_answer": lambda said, true: float(_normalize_text(true) in _normalize_text(said)),
        "matches_pattern": lambda said, _: float(re.search(pattern, said) is not None),
        "valid_json": lambda said, _: float(_is_json(said)),
        "near_length": lambda said, _: max(0.0, 1.0 - abs(len(said) - target) / target),
    }
    return made[name]


def _normalize_text(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!\"'")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
