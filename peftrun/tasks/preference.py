"""Kind `preference`: of two answers to a prompt one was chosen."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from peftrun.device import of_inputs
from peftrun.errors import DataError
from peftrun.objectives import DpoObjective, RewardObjective
from peftrun.schema import TaskSpec
from peftrun.tasks.causal_lm import completion_ids, prompt_ids
from peftrun.tasks.data import load_examples
from peftrun.tasks.likelihood import against_base
from peftrun.tasks.talks import Talk, answer_of, conversational, given_of, kept

TIE = 0.5  # how a pair counts that the model does not tell apart


@dataclass(frozen=True)
class Pair:
    """One row: what is given, and two answers."""

    given: Talk
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Row:
    """A pair as token ids; `beta` is what its margin is multiplied by in the loss."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    beta: float

    @property
    def ids(self) -> list[int]:
        """Prompt and chosen answer."""
        return self.prompt + self.chosen


@dataclass(frozen=True)
class Rows:
    """Training pairs as TRL takes them, held-out rows, and a digest of both."""

    train: list[dict[str, Any]]
    held_out: list[Row]
    digest: str

    def for_training(self) -> list[dict[str, Any]]:
        """`prompt`, `chosen`, `rejected` of each training row."""
        return self.train

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), "digest": self.digest}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's pairs. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or both answers of a row are the same.
    """
    train, held_out = (
        kept(part, [_encode(one, task, tokenizer) for one in part], _length, task, which)
        for part, which in zip(load_examples(task, _pair), ("training", "held-out"), strict=True)
    )
    text = json.dumps([[one.given, one.chosen, one.rejected] for one, _ in (*train, *held_out)], ensure_ascii=False)
    return Rows(
        [_as_trl(one, tokenizer, isinstance(task.objective, RewardObjective)) for one, _ in train],
        [row for _, row in held_out],
        hashlib.sha256(text.encode()).hexdigest(),
    )


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> dict[str, float]:
    """Over held-out pairs, for a reward model or a language model.

    Returns:
        loss: mean of −log σ(beta · margin).
        preference_accuracy: share of pairs with a positive margin; a tie counts half.
        margin: mean of how much more the chosen answer gains over the base than the rejected one, in nats; of a reward
            model, the difference of their rewards.
        likelihood_accuracy: share of pairs whose chosen answer is the likelier one, a token of each taken.
    """
    if _is_reward(model):
        return _figures(_rewards(model, tokenizer, rows, batch_size), [1.0] * len(rows))
    prompts = [row.prompt for row in rows]
    pad = tokenizer.pad_token_id
    chosen, gained = against_base(model, pad, prompts, [row.chosen for row in rows], batch_size)
    rejected, lost = against_base(model, pad, prompts, [row.rejected for row in rows], batch_size)
    likelier = chosen / torch.tensor([len(row.chosen) for row in rows]) > rejected / torch.tensor(
        [len(row.rejected) for row in rows]
    )
    return _figures(gained - lost, [row.beta for row in rows]) | {"likelihood_accuracy": likelier.float().mean().item()}


def _figures(margins: torch.Tensor, betas: list[float]) -> dict[str, float]:
    right = (margins > 0).float() + TIE * (margins == 0).float()
    return {
        "loss": -torch.nn.functional.logsigmoid(margins * torch.tensor(betas)).mean().item(),
        "preference_accuracy": right.mean().item(),
        "margin": margins.mean().item(),
    }


def _is_reward(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.endswith("ForSequenceClassification")


@torch.inference_mode()
def _rewards(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> torch.Tensor:
    """Reward of the chosen answer less that of the rejected one: (pairs,)."""
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        both = [row.prompt + row.chosen for row in part] + [row.prompt + row.rejected for row in part]
        padded = tokenizer.pad({"input_ids": both}, padding_side="right", return_tensors="pt").to(of_inputs(model))
        scores = (
            model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0].float().cpu()
        )
        found.append(scores[: len(part)] - scores[len(part) :])
    model.train(was_training)
    return torch.cat(found)


def _pair(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> Pair:
    assert task.chosen is not None and task.rejected is not None
    given = given_of(where, row, task)
    chosen, rejected = (answer_of(where, row, column) for column in (task.chosen, task.rejected))
    if chosen == rejected:
        raise DataError(
            f"{where}: columns {task.chosen} and {task.rejected} are the same answer, so nothing is preferred; remove the row"
        )
    return Pair(given, chosen, rejected)


def _encode(one: Pair, task: TaskSpec, tokenizer: Any) -> Row:
    prompt = prompt_ids(tokenizer, one.given)
    chosen, rejected = (completion_ids(tokenizer, one.given, prompt, text) for text in (one.chosen, one.rejected))
    beta = task.objective.beta if isinstance(task.objective, DpoObjective) else 1.0
    return Row(prompt, chosen, rejected, beta)


def _length(row: Row) -> int:
    return len(row.prompt) + max(len(row.chosen), len(row.rejected))


def _as_trl(one: Pair, tokenizer: Any, reward: bool) -> dict[str, Any]:
    return conversational(tokenizer, one.given, {"chosen": one.chosen, "rejected": one.rejected}, apart=not reward)
