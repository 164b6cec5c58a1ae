"""Kind `prompt_only`: the model answers prompts, and its answers are rewarded."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from peftrun.objectives import GrpoObjective
from peftrun.schema import TaskSpec
from peftrun.tasks import rewards, written
from peftrun.tasks.data import label, load_examples
from peftrun.tasks.encoding import prompt_ids
from peftrun.tasks.messages import Talk, named
from peftrun.tasks.preference import Rows
from peftrun.tasks.talks import conversational, given_of, kept
from peftrun.tasks.templates import fill


@dataclass(frozen=True)
class Asked:
    """One row: what is given, and the true answer, if there is one."""

    given: Talk
    completion: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Row:
    """The same as token ids, and as TRL takes it."""

    prompt: list[int]
    answer: str
    as_trl: dict[str, Any]
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.prompt


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's prompts. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`.
    """
    train, held_out = load_examples(task, _asked)
    text = json.dumps([[one.given, one.completion] for one in (*train, *held_out)], ensure_ascii=False)
    first, second = (
        kept([_encode(one, tokenizer) for one in part], lambda row: len(row.prompt), task, which)
        for part, which in ((train, "training"), (held_out, "held-out"))
    )
    return Rows(first, second, hashlib.sha256(text.encode()).hexdigest())


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over the greedy answers to held-out prompts: `loss` (less is better: minus the reward), `reward` (their weighted sum), and
    the mean of each reward."""
    objective = task.objective
    assert isinstance(objective, GrpoObjective)
    said = written.answers(model, tokenizer, [row.prompt for row in rows], batch_size, objective.max_completion_length)
    each: dict[str, float] = {
        name: sum(rewards.of(name, objective)(text, row.answer) for text, row in zip(said, rows, strict=True))
        / len(rows)
        for name in objective.rewards
    }
    weights = objective.reward_weights or [1.0] * len(objective.rewards)
    total = sum(weight * each[name] for name, weight in zip(objective.rewards, weights, strict=True))
    return {"loss": 0.0 - total, "reward": total, **each}


def _asked(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Asked:
    labelled = row | ({"label": label(where, row, task.data)} if task.data.label_column else {})
    return Asked(given_of(where, labelled, task), fill(where, task.completion, labelled) or "", where)


def _encode(one: Asked, tokenizer: Any) -> Row:
    with named(one.where):
        prompt = prompt_ids(tokenizer, one.given)
    as_trl = conversational(tokenizer, one.given, {}) | {"answer": one.completion}
    return Row(prompt, one.completion, as_trl, one.where)
