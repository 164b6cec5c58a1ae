"""Kind `prompt_only`: the model answers prompts, and its answers are rewarded."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from peftrun.objectives import GrpoObjective
from peftrun.schema import TaskSpec
from peftrun.tasks import ends, rewards, written
from peftrun.tasks.data import label, load_examples
from peftrun.tasks.encoding import Encoder
from peftrun.tasks.messages import Conversation
from peftrun.tasks.preference import Rows
from peftrun.tasks.talks import encoded, given_of
from peftrun.tasks.templates import fill


@dataclass(frozen=True)
class Asked:
    """One row: what is given, and the true answer, if there is one."""

    given: Conversation
    completion: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Row:
    """The same as token ids."""

    prompt: list[int]
    answer: str
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.prompt

    @property
    def as_trl(self) -> dict[str, Any]:
        """As TRL takes it."""
        return {"prompt": self.prompt, "answer": self.answer}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's prompts. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`.
    """
    ends.eos(tokenizer)  # answers that are drawn must be able to end
    train, held_out = load_examples(task, _asked)
    text = json.dumps(
        [[one.given.as_json(), one.completion] for one in (*train, *held_out)], ensure_ascii=False, default=str
    )
    return Rows(*encoded(train, held_out, task, tokenizer, _encode), hashlib.sha256(text.encode()).hexdigest())


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


def _encode(one: Asked, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(one.where, one.given)
    return Row(encoder.prompt(one.given), one.completion, one.where)
