"""Rows of task type `seq2seq`: token ids of an input text and of a target text."""

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
    """Token ids of the input (`ids`) and of the target."""

    ids: list[int]
    target: list[int]
    where: str = field(default="", compare=False)
    columns: str = field(default="", compare=False)  # see `Example.columns`

    @property
    def as_trained(self) -> dict[str, list[int]]:
        """In the trainer's form."""
        return {"input_ids": self.ids, "labels": self.target}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows, without those of which input or target is longer than `task.max_length` tokens.

    Raises: DataError: see `load_examples`; or no row fits.
    """
    tally = Tally()
    examples = load_examples(task, tally=tally)
    train, held_out = (
        drop_too_long(
            _encode_examples(split, tokenizer), lambda row: max(len(row.ids), len(row.target)), task, which, tally
        )
        for split, which in zip(examples, ("training", "evaluation"), strict=True)
    )
    return Rows(train, held_out, digest_examples([*examples[0], *examples[1]]), tally)


def _encode_examples(examples: list[Example], tokenizer: Any) -> list[Row]:
    if not all(example.given for example in examples):
        raise DataError(
            "task.prompt_template is not set; task.type=seq2seq reads one text and writes another: type 'task.prompt_template=\"{COLUMN}\"'"
        )
    rows, end = [], tokenizer.eos_token_id
    for batch in batch_items(examples):
        inputs = tokenizer([example.given.messages[-1].text for example in batch])["input_ids"]
        # `text_target`: Marian, NLLB and others tokenize the target language differently.
        targets = tokenizer(text_target=[example.completion for example in batch])["input_ids"]
        for example, ids, target in zip(batch, inputs, targets, strict=True):
            ended = end is None or list(target[-1:]) == [end]
            rows.append(Row(list(ids), [*target] if ended else [*target, end], example.where, example.columns))
    return rows
