"""Rows of kind `seq_cls`: a text and its label."""

from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks.examples import Example, digest_examples, load_examples, render_example
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.rows.classes import Row, not_among, resolve_max_length, warn_truncated
from peftrun.tasks.token_ids import batch_items


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens, longer ones cut at `task.max_length` or where the model ends.

    Raises: DataError: see `data.load_examples`; or a label is not among `task.label_names`.
    """
    tally = Tally()
    train, held_out = load_examples(task, _render_labeled, tally)
    first, second = (_encode_examples(part, task, tokenizer) for part in (train, held_out))
    return warn_truncated(
        Rows(first, second, digest_examples([*train, *held_out]), tally), resolve_max_length(task, tokenizer)
    )


def _render_labeled(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    one, names = render_example(where, row, task, choices), task.label_names or []
    if one.completion not in names:
        raise DataError(f"{where}: label {one.completion!r} {not_among(names, one.completion)}")
    return one


def _encode_examples(examples: list[Example], task: TaskSpec, tokenizer: Any) -> list[Row]:
    names, most, rows = task.label_names or [], resolve_max_length(task, tokenizer), []
    for part in batch_items(examples):
        texts = [one.given.messages[-1].text for one in part]
        found = tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        rows += [Row(list(ids), names.index(one.completion), one.where) for one, ids in zip(part, found, strict=True)]
    return rows
