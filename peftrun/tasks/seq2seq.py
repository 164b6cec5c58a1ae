"""Kind `seq2seq`: a text in, a text out, by a model with an encoder and a decoder (T5 and its kin)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from peftrun.device import of_inputs
from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks import written
from peftrun.tasks.data import Example, digest, load_examples
from peftrun.tasks.limits import IGNORED
from peftrun.tasks.talks import kept


@dataclass(frozen=True)
class Row:
    """Token ids of what is read, and of what is to be written."""

    ids: list[int]
    target: list[int]
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, and a digest of both."""

    train: list[Row]
    held_out: list[Row]
    digest: str

    def for_training(self) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` of each training row."""
        return [{"input_ids": row.ids, "labels": row.target} for row in self.train]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), "digest": self.digest}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens. Rows of which one side is longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or no row fits.
    """
    train, held_out = load_examples(task)
    first, second = (
        kept([_encode(one, tokenizer) for one in part], _length, task, which)
        for part, which in ((train, "training"), (held_out, "held-out"))
    )
    return Rows(first, second, digest([*train, *held_out]))


def collator(tokenizer: Any, model: Any = None) -> Any:
    """What makes a batch of training rows; with the model, the decoder's inputs too."""
    return DataCollatorForSeq2Seq(tokenizer, model=model)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out rows.

    Returns:
        loss: nats a token of the target. perplexity: its exponential.
        exact_match: share of rows whose greedy answer is the target: every token is the first choice given those before it.
        And what `task.metrics` asks for, see `written.nearness`.
    """
    was_training = model.training
    model.eval()
    batches, total, tokens, exact = collator(tokenizer, model), 0.0, 0, 0
    for start in range(0, len(rows), batch_size):
        part = [{"input_ids": row.ids, "labels": row.target} for row in rows[start : start + batch_size]]
        batch = batches(part).to(of_inputs(model))
        labels = batch.pop("labels")  # with which a model computes its own loss: of AdaLoRA, one that only training has
        logs = model(**batch).logits.float().log_softmax(-1)
        learned = labels != IGNORED
        labels = labels.masked_fill(~learned, 0)
        total -= (logs.gather(-1, labels[..., None])[..., 0] * learned).sum().item()
        tokens += int(learned.sum())
        exact += int(((logs.argmax(-1) == labels) | ~learned).all(-1).sum())
    model.train(was_training)
    return {
        "loss": total / tokens,
        "perplexity": math.exp(min(total / tokens, 700.0)),
        "exact_match": exact / len(rows),
    } | written.measured(model, tokenizer, [(row.ids, row.target) for row in rows], batch_size, task)


def _encode(example: Example, tokenizer: Any) -> Row:
    if not example.given:
        raise DataError(
            "task.prompt is not set; task.kind=seq2seq reads one text and writes another: type 'task.prompt=\"{COLUMN}\"'"
        )
    target = list(tokenizer(text_target=example.completion)["input_ids"])
    end = tokenizer.eos_token_id
    return Row(
        list(tokenizer(example.given.messages[-1].text)["input_ids"]),
        target if end is None or target[-1:] == [end] else [*target, end],
        example.where,
    )


def _length(row: Row) -> int:
    return max(len(row.ids), len(row.target))
