"""Kind `prompt_only`: the model answers prompts, and its answers are rewarded."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from peftrun.device import of_inputs
from peftrun.objectives import GrpoObjective
from peftrun.schema import TaskSpec
from peftrun.tasks import rewards
from peftrun.tasks.causal_lm import prompt_ids
from peftrun.tasks.data import fill, load_examples
from peftrun.tasks.preference import Rows
from peftrun.tasks.talks import Talk, conversational, given_of, kept


@dataclass(frozen=True)
class Asked:
    """One row: what is given, and the true answer, if there is one."""

    given: Talk
    completion: str


@dataclass(frozen=True)
class Row:
    """The same as token ids, and what answers to it are rewarded for."""

    prompt: list[int]
    answer: str
    objective: GrpoObjective

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.prompt


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's prompts. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`.
    """
    train, held_out = (
        kept(part, [_encode(one, task, tokenizer) for one in part], lambda row: len(row.prompt), task, which)
        for part, which in zip(load_examples(task, _asked), ("training", "held-out"), strict=True)
    )
    text = json.dumps([[one.given, one.completion] for one, _ in (*train, *held_out)], ensure_ascii=False)
    return Rows(
        [conversational(tokenizer, one.given, {}) | {"answer": one.completion} for one, _ in train],
        [row for _, row in held_out],
        hashlib.sha256(text.encode()).hexdigest(),
    )


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> dict[str, float]:
    """Over the greedy answers to held-out prompts: `loss` (less is better: minus the reward), `reward` (their weighted sum), and
    the mean of each reward."""
    objective = rows[0].objective
    said = _answers(model, tokenizer, rows, batch_size, objective.max_completion_length)
    each: dict[str, float] = {
        name: sum(rewards.of(name, objective)(text, row.answer) for text, row in zip(said, rows, strict=True))
        / len(rows)
        for name in objective.rewards
    }
    weights = objective.reward_weights or [1.0] * len(objective.rewards)
    total = sum(weight * each[name] for name, weight in zip(objective.rewards, weights, strict=True))
    return {"loss": 0.0 - total, "reward": total, **each}


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, longest: int) -> list[str]:
    was_training = model.training
    model.eval()
    found: list[str] = []
    for start in range(0, len(rows), batch_size):
        ids = [row.prompt for row in rows[start : start + batch_size]]
        padded = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(of_inputs(model))
        out = model.generate(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], max_new_tokens=longest, do_sample=False,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        found += tokenizer.batch_decode(out[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return found


def _asked(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Asked:
    labelled = row | ({"label": _label(row, task)} if task.data.label_column else {})
    return Asked(given_of(where, labelled, task), fill(where, task.completion, labelled) or "")


def _label(row: dict[str, Any], task: TaskSpec) -> str:
    value = str(row[task.data.label_column or ""])
    return (task.data.labels or {}).get(value, value)


def _encode(one: Asked, task: TaskSpec, tokenizer: Any) -> Row:
    assert isinstance(task.objective, GrpoObjective)
    return Row(prompt_ids(tokenizer, one.given), one.completion, task.objective)
