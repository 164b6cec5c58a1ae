"""What a model answers to a few held-out rows, before and after training. No random number is drawn, none is moved."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peftrun.config.schema.objectives import GrpoObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks import generation_metrics

BEGINNING = 32  # tokens of a plain text that are given; what follows is expected
SHORTEST = 24  # tokens that an answer may take where a shorter one is expected


@dataclass(frozen=True)
class Asked:
    """A held-out row: what is given and what is expected (None: nothing in particular), as token ids or text."""

    prompt: list[int]
    expected: list[int] | str | None
    where: str


def chosen(rows: list[Any], wanted: int) -> list[Asked]:
    """So many of the rows, evenly apart, that have something to be answered."""
    every = max(1, len(rows) // wanted) if wanted else 1
    return [_asked(row) for row in rows[::every][:wanted]]


def longest(asked: list[Asked], task: TaskSpec) -> int:
    """Tokens that an answer may take: twice the longest expected one, no more than the task allows."""
    if isinstance(task.objective, GrpoObjective):
        return task.objective.max_completion_length
    lengths = [len(one.expected) for one in asked if isinstance(one.expected, list)]
    return min(task.max_new_tokens, max(SHORTEST, 2 * max(lengths, default=0)))


def answers(net: Any, tokenizer: Any, asked: list[Asked], batch_size: int, most: int) -> list[str]:
    """The greedy answer to each, of at most so many tokens."""
    with _random_as_it_was():
        said = generation_metrics.answers(net, tokenizer, [one.prompt for one in asked], batch_size, most)
    return [one.strip() for one in said]


def told(asked: list[Asked], tokenizer: Any, answered: dict[str, list[str]], most: int) -> dict[str, Any]:
    """For the record: each row's prompt, what is expected, and the answers by when they were given."""
    rows = [
        {
            "where": one.where,
            "prompt": tokenizer.decode(one.prompt, skip_special_tokens=True).strip(),
            "expected": _text(one.expected, tokenizer),
            **{when: said[place] for when, said in answered.items()},
        }
        for place, one in enumerate(asked)
    ]
    return {"max_new_tokens": most, "rows": rows}


def _text(expected: list[int] | str | None, tokenizer: Any) -> str | None:
    if isinstance(expected, list):
        return str(tokenizer.decode(expected, skip_special_tokens=True)).strip()
    return expected


def _asked(row: Any) -> Asked:
    """Of a text that is learned whole, its beginning is given; of two answers, the chosen one is expected."""
    if hasattr(row, "target"):
        return Asked(row.ids, row.target, row.where)
    if len(row.prompt) == 1 and hasattr(row, "completion"):
        cut = min(BEGINNING, len(row.ids) // 2) or 1
        return Asked(row.ids[:cut], row.ids[cut:], row.where)
    if getattr(row, "desirable", True) is False:
        return Asked(row.prompt, None, row.where)
    expected = next((getattr(row, name) for name in ("completion", "chosen", "answer") if hasattr(row, name)), None)
    return Asked(row.prompt, expected or None, row.where)


@contextmanager
def _random_as_it_was() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
