"""Kind `unpaired_preference`: an answer to a prompt was good, or was not."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from peftrun.errors import DataError
from peftrun.objectives import KtoObjective
from peftrun.schema import TaskSpec
from peftrun.tasks.causal_lm import completion_ids, prompt_ids
from peftrun.tasks.data import fill, load_examples
from peftrun.tasks.likelihood import against_base
from peftrun.tasks.preference import Rows
from peftrun.tasks.talks import Talk, conversational, given_of, kept, messages_of

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Judged:
    """One row: what is given, an answer, and whether it is wanted."""

    given: Talk
    completion: str
    desirable: bool


@dataclass(frozen=True)
class Row:
    """The same as token ids; `beta` is what its log-ratio is multiplied by in the loss."""

    prompt: list[int]
    completion: list[int]
    desirable: bool
    beta: float

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.completion


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's judged answers. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or a judgement is neither true nor false.
    """
    train, held_out = (
        kept(part, [_encode(one, task, tokenizer) for one in part], lambda row: len(row.ids), task, which)
        for part, which in zip(load_examples(task, _judged), ("training", "held-out"), strict=True)
    )
    both = {one.desirable for one, _ in train}
    if len(both) < 2:
        raise DataError(
            f"task.desirable={task.desirable}: every training row says {str(both.pop()).lower()}; KTO needs both kinds"
        )
    text = json.dumps(
        [[one.given, one.completion, one.desirable] for one, _ in (*train, *held_out)], ensure_ascii=False
    )
    return Rows(
        [
            conversational(tokenizer, one.given, {"completion": one.completion}) | {"label": one.desirable}
            for one, _ in train
        ],
        [row for _, row in held_out],
        hashlib.sha256(text.encode()).hexdigest(),
    )


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> dict[str, float]:
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
    signs = torch.where(wanted, 1.0, -1.0) * torch.tensor([row.beta for row in rows])
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
    if task.messages is None:
        return Judged(given_of(where, row, task), fill(where, task.completion, row) or "", said in TRUE)
    talk = messages_of(where, row[task.messages], task.messages)
    if talk[-1][0] != "assistant" or len(talk) < 2:
        raise DataError(
            f"{where}: column {task.messages} must end with the assistant's answer to something; mend or remove the row"
        )
    system = (("system", task.system),) if task.system else ()
    return Judged((*system, *talk[:-1]), talk[-1][1], said in TRUE)


def _encode(one: Judged, task: TaskSpec, tokenizer: Any) -> Row:
    prompt = prompt_ids(tokenizer, one.given)
    beta = task.objective.beta if isinstance(task.objective, KtoObjective) else 1.0
    return Row(prompt, completion_ids(tokenizer, one.given, prompt, one.completion), one.desirable, beta)
