"""Kind `unpaired_preference`: an answer to a prompt was good, or was not."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.errors import DataError
from peftrun.objectives import KtoObjective
from peftrun.schema import TaskSpec
from peftrun.tasks.data import load_examples
from peftrun.tasks.encoding import Encoder
from peftrun.tasks.likelihood import against_base
from peftrun.tasks.messages import ADVICE, ASSISTANT, Conversation, Message, says
from peftrun.tasks.preference import Rows
from peftrun.tasks.talks import encoded, given_of, whole_of
from peftrun.tasks.templates import fill

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Judged:
    """One row: what is given, an answer, and whether it is wanted."""

    given: Conversation
    completion: Message
    desirable: bool
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Row:
    """The same as token ids."""

    prompt: list[int]
    completion: list[int]
    desirable: bool
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.completion

    @property
    def as_trl(self) -> dict[str, Any]:
        """As TRL takes it."""
        return {"prompt_ids": self.prompt, "completion_ids": self.completion, "label": self.desirable}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's judged answers. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or a judgement is neither true nor false.
    """
    train, held_out = load_examples(task, _judged)
    said = [[one.given.as_json(), one.completion.brief, one.desirable] for one in (*train, *held_out)]
    first, second = encoded(train, held_out, task, tokenizer, _encode)
    both = {row.desirable for row in first}
    if len(both) < 2:
        raise DataError(
            f"task.desirable={task.desirable}: every training row says {str(both.pop()).lower()}; KTO needs both kinds"
        )
    return Rows(first, second, hashlib.sha256(json.dumps(said, ensure_ascii=False, default=str).encode()).hexdigest())


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out answers.

    Returns:
        loss: mean of 1 − σ(±beta · log-ratio to the base), KTO's with its reference point at 0.
        desirable_log_ratio, undesirable_log_ratio: mean nats that the model has gained over its base on answers of each kind.
        auc: chance that a wanted answer has gained more than an unwanted one; a tie counts half.
    """
    _, gained = against_base(
        model, tokenizer.pad_token_id, [row.prompt for row in rows], [row.completion for row in rows], batch_size
    )
    wanted = torch.tensor([row.desirable for row in rows])
    signs = torch.where(wanted, 1.0, -1.0) * (task.objective.beta if isinstance(task.objective, KtoObjective) else 1.0)
    good, bad = gained[wanted], gained[~wanted]
    apart = good[:, None] - bad[None]
    return {
        "loss": (1 - torch.sigmoid(signs * gained)).mean().item(),
        "desirable_log_ratio": good.mean().item() if len(good) else 0.0,
        "undesirable_log_ratio": bad.mean().item() if len(bad) else 0.0,
        "auc": ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item() if apart.numel() else 0.5,
    }


def _judged(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> Judged:
    assert task.desirable is not None
    said = str(row[task.desirable]).strip().lower()
    if said not in TRUE + FALSE:
        raise DataError(
            f"{where}: {task.desirable}={row[task.desirable]} is neither true nor false; mend or remove the row"
        )
    whole = whole_of(where, row, task)
    if whole is None:
        answer = says(ASSISTANT, fill(where, task.completion, row) or "")
        return Judged(given_of(where, row, task), answer, said in TRUE, where)
    last = len(whole.messages) - 1
    if whole.messages[last]["role"] != ASSISTANT or not any(one["role"] != "system" for one in whole.messages[:last]):
        raise DataError(
            f"{where}: column {task.messages or task.completion} must end with the assistant's answer to something; {ADVICE}"
        )
    return Judged(whole.before(last), whole.messages[last], said in TRUE, where)


def _encode(one: Judged, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(one.where, one.given.followed_by(one.completion))
    prompt, (completion,) = encoder.answered(one.given, [one.completion])
    return Row(prompt, completion, one.desirable, one.where)
