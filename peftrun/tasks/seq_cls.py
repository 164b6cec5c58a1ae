"""Kind `seq_cls`: a text has one label."""

from typing import Any

import torch
from transformers import DataCollatorWithPadding

from peftrun.errors import DataError
from peftrun.schema import TaskSpec
from peftrun.tasks.classes import Row, Rows, answers, limit, macro_f1, say_cut
from peftrun.tasks.data import Example, digest, example, load_examples


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens, longer ones cut at `task.max_length` or where the model ends.

    Raises: DataError: see `data.load_examples`; or a label is not among `task.label_names`.
    """
    train, held_out = load_examples(task, _labelled)
    found = Rows(
        [_encode(one, task, tokenizer) for one in train],
        [_encode(one, task, tokenizer) for one in held_out],
        digest([*train, *held_out]),
    )
    return say_cut(found, limit(task, tokenizer))


def collator(tokenizer: Any) -> Any:
    """What makes a batch of training rows."""
    return DataCollatorWithPadding(tokenizer)


def evaluate(model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec) -> dict[str, float]:
    """Over held-out rows: `loss` (mean nats a row), `accuracy`, `macro_f1` (mean of the labels' F1)."""
    return detailed(model, tokenizer, rows, batch_size, task)[0]


def detailed(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int, task: TaskSpec
) -> tuple[dict[str, float], dict[str, Any]]:
    """What `evaluate` gives; and `confusion`: how many rows of each label (a line each) were given each label (a column each)."""
    total, pairs, labels = 0.0, [], 0
    for row, logits in answers(model, tokenizer, rows, batch_size):
        true, labels = int(row.labels), len(logits)
        total -= torch.log_softmax(logits, -1)[true].item()
        pairs.append((true, int(logits.argmax())))
    right = sum(one == other for one, other in pairs)
    found = {"loss": total / len(pairs), "accuracy": right / len(pairs), "macro_f1": macro_f1(pairs, labels)}
    counts = [[pairs.count((true, answered)) for answered in range(labels)] for true in range(labels)]
    return found, {"confusion": {"labels": task.label_names, "counts": counts}}


def _labelled(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    one, names = example(where, row, task, choices), task.label_names or []
    if one.completion not in names:
        raise DataError(
            f"{where}: label {one.completion!r} is not among task.label_names ({', '.join(names)}); add it, or mend the row"
        )
    return one


def _encode(one: Example, task: TaskSpec, tokenizer: Any) -> Row:
    text = one.given.messages[-1].text
    ids = tokenizer(text, truncation=True, max_length=limit(task, tokenizer))["input_ids"]
    return Row(list(ids), (task.label_names or []).index(one.completion), one.where)
