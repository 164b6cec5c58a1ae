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

MAX_PROMPT_TOKENS = 32  # tokens of a plain text that are given; what follows is expected
MIN_NEW_TOKENS = 24  # tokens that an answer may take where a shorter one is expected


@dataclass(frozen=True)
class SampleRow:
    """A held-out row: what is given and what is expected (None: nothing in particular), as token ids or text."""

    prompt: list[int]
    expected: list[int] | str | None
    where: str


def choose_rows(rows: list[Any], wanted: int) -> list[SampleRow]:
    """So many of the rows, evenly apart, that have something to be answered."""
    every = max(1, len(rows) // wanted) if wanted else 1
    return [_build_sample_row(row) for row in rows[::every][:wanted]]


def compute_max_new_tokens(asked: list[SampleRow], task: TaskSpec) -> int:
    """Tokens that an answer may take: twice the longest expected one, no more than the task allows."""
    if isinstance(task.objective, GrpoObjective):
        return task.objective.max_completion_length
    lengths = [len(one.expected) for one in asked if isinstance(one.expected, list)]
    return min(task.max_new_tokens, max(MIN_NEW_TOKENS, 2 * max(lengths, default=0)))


def generate_samples(net: Any, tokenizer: Any, asked: list[SampleRow], batch_size: int, most: int) -> list[str]:
    """The greedy answer to each, of at most so many tokens."""
    with _preserve_random_state():
        said = generation_metrics.generate_greedy(net, tokenizer, [one.prompt for one in asked], batch_size, most)
    return [one.strip() for one in said]


def format_samples(asked: list[SampleRow], tokenizer: Any, answered: dict[str, list[str]], most: int) -> dict[str, Any]:
    """For the record: each row's prompt, what is expected, and the answers by when they were given."""
    rows = [
        {
            "where": one.where,
            "prompt": tokenizer.decode(one.prompt, skip_special_tokens=True).strip(),
            "expected": _decode_expected(one.expected, tokenizer),
            **{when: said[place] for when, said in answered.items()},
        }
        for place, one in enumerate(asked)
    ]
    return {"max_new_tokens": most, "rows": rows}


def _decode_expected(expected: list[int] | str | None, tokenizer: Any) -> str | None:
    if isinstance(expected, list):
        return str(tokenizer.decode(expected, skip_special_tokens=True)).strip()
    return expected


def _build_sample_row(row: Any) -> SampleRow:
    """Of a text that is learned whole, its beginning is given; of two answers, the chosen one is expected."""
    if hasattr(row, "target"):
        return SampleRow(row.ids, row.target, row.where)
    if len(row.prompt) == 1 and hasattr(row, "completion"):
        cut = min(MAX_PROMPT_TOKENS, len(row.ids) // 2) or 1
        return SampleRow(row.ids[:cut], row.ids[cut:], row.where)
    if getattr(row, "desirable", True) is False:
        return SampleRow(row.prompt, None, row.where)
    expected = next((getattr(row, name) for name in ("completion", "chosen", "answer") if hasattr(row, name)), None)
    return SampleRow(row.prompt, expected or None, row.where)


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
