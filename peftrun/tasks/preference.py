"""Kind `preference`: of two answers to a prompt one was chosen."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.device import of_inputs
from peftrun.errors import DataError
from peftrun.objectives import DpoObjective, RewardObjective
from peftrun.schema import TaskSpec
from peftrun.tasks.data import load_examples
from peftrun.tasks.encoding import Encoder
from peftrun.tasks.likelihood import against_base
from peftrun.tasks.messages import Conversation, Message
from peftrun.tasks.talks import answer_of, encoded, given_of

TIE = 0.5  # how a pair counts that the model does not tell apart


@dataclass(frozen=True)
class Pair:
    """One row: what is given, and two answers."""

    given: Conversation
    chosen: Message
    rejected: Message
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Row:
    """A pair as token ids. `rewarded`: each answer is judged together with its prompt, as one text."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    rewarded: bool = False
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and the longer answer."""
        return self.prompt + max(self.chosen, self.rejected, key=len)

    @property
    def as_trl(self) -> dict[str, Any]:
        """As TRL takes it."""
        if self.rewarded:
            return {"chosen_ids": self.prompt + self.chosen, "rejected_ids": self.prompt + self.rejected}
        return {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, and a digest of both."""

    train: list[Any]
    held_out: list[Any]
    digest: str

    def for_training(self) -> list[dict[str, Any]]:
        """Each training row as TRL takes it."""
        return [row.as_trl for row in self.train]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), "digest": self.digest}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's pairs. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or both answers of a row are the same.
    """
    train, held_out = load_examples(task, _pair)
    said = [[one.given.as_json(), one.chosen.brief, one.rejected.brief] for one in (*train, *held_out)]
    text = json.dumps(said, ensure_ascii=False, default=str)
    return Rows(*encoded(train, held_out, task, tokenizer, _encode), hashlib.sha256(text.encode()).hexdigest())


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out pairs, for a reward model or a language model.

    Returns:
        loss: mean of −log σ(beta · margin).
        preference_accuracy: share of pairs with a positive margin; a tie counts half.
        margin: mean of how much more the chosen answer gains over the base than the rejected one, in nats; of a reward
            model, the difference of their rewards.
        likelihood_accuracy: share of pairs whose chosen answer is the likelier one, a token of each taken.
    """
    if _is_reward(model):
        return _figures(_rewards(model, tokenizer, rows, batch_size), 1.0)
    prompts = [row.prompt for row in rows]
    pad = tokenizer.pad_token_id
    chosen, gained = against_base(model, pad, prompts, [row.chosen for row in rows], batch_size)
    rejected, lost = against_base(model, pad, prompts, [row.rejected for row in rows], batch_size)
    likelier = chosen / torch.tensor([len(row.chosen) for row in rows]) > rejected / torch.tensor(
        [len(row.rejected) for row in rows]
    )
    beta = task.objective.beta if isinstance(task.objective, DpoObjective) else 1.0
    return _figures(gained - lost, beta) | {"likelihood_accuracy": likelier.float().mean().item()}


def _figures(margins: torch.Tensor, beta: float) -> dict[str, float]:
    right = (margins > 0).float() + TIE * (margins == 0).float()
    return {
        "loss": -torch.nn.functional.logsigmoid(margins * beta).mean().item(),
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
    return Pair(given, chosen, rejected, where)


def _encode(one: Pair, task: TaskSpec, encoder: Encoder) -> Row:
    for answer in (one.chosen, one.rejected):
        encoder.check(one.where, one.given.followed_by(answer))
    prompt, (chosen, rejected) = encoder.answered(one.given, [one.chosen, one.rejected])
    return Row(prompt, chosen, rejected, isinstance(task.objective, RewardObjective), one.where)
