"""Rows of kind `seq2seq`: token ids of a text that is read, and of one that is written."""

from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks.conversations import drop_too_long
from peftrun.tasks.examples import Example, digest_examples, load_examples
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.token_ids import batch_items


@dataclass(frozen=True)
class Row:
    """Token ids of what is read, and of what is to be written."""

    ids: list[int]
    target: list[int]
    where: str = field(default="", compare=False)

    @property
    def as_trained(self) -> dict[str, list[int]]:
        """As the loop takes it."""
        return {"input_ids": self.ids, "labels": self.target}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens. Rows of which one side is longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or no row fits.
    """
    tally = Tally()
    train, held_out = load_examples(task, tally=tally)
    first, second = (
        drop_too_long(_encode_examples(part, tokenizer), _count_longest_side, task, which, tally)
        for part, which in ((train, "training"), (held_out, "held-out"))
    )
    return Rows(first, second, digest_examples([*train, *held_out]), tally)


def _encode_examples(examples: list[Example], tokenizer: Any) -> list[Row]:
    if not all(one.given for one in examples):
        raise DataError(
            "task.prompt is not set; task.kind=seq2seq reads one text and writes another: type 'task.prompt=\"{COLUMN}\"'"
        )
    rows = []
    for part in batch_items(examples):
        read = tokenizer([one.given.messages[-1].text for one in part])["input_ids"]
        written = tokenizer(text_target=[one.completion for one in part])["input_ids"]
        rows += [
            Row(list(ids), _append_end_token(list(target), tokenizer.eos_token_id), one.where)
            for one, ids, target in zip(part, read, written, strict=True)
        ]
    return rows


def _append_end_token(ids: list[int], end: int | None) -> list[int]:
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _count_longest_side(row: Row) -> int:
    return max(len(row.ids), len(row.target))
