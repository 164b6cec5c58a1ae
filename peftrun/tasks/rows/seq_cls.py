"""Rows of task type `seq_cls`: a text and its label."""

from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks.examples import Example, digest_examples, load_examples, render_example
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.rows.classes import Row, not_among, resolve_max_length, warn_truncated
from peftrun.tasks.token_ids import batch_items


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows, truncated to `task.max_length` tokens or the model's limit.

    Raises: DataError: see `load_examples`; or a label is not in `task.label_names`.
    """
    tally, limit = Tally(), resolve_max_length(task, tokenizer)
    train, held_out = load_examples(task, _render_labeled, tally)
    names, splits = task.label_names or [], (list[Row](), list[Row]())
    for examples, rows in zip((train, held_out), splits, strict=True):
        for batch in batch_items(examples):
            texts = [example.given.messages[-1].text for example in batch]
            encoded = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
            for example, ids in zip(batch, encoded, strict=True):
                rows.append(Row(list(ids), names.index(example.completion), example.where))
    return warn_truncated(Rows(*splits, digest_examples([*train, *held_out]), tally), limit)


def _render_labeled(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    example, names = render_example(where, row, task, choices), task.label_names or []
    if example.completion not in names:
        raise DataError(f"{where}: label {example.completion!r} {not_among(names, example.completion)}")
    return example
