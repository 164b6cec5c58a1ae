"""Rows of task type `prompt_only`: a prompt as token ids, and the true answer if there is one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import fill_template, get_column_value, get_sole_column
from peftrun.tasks import end_tokens
from peftrun.tasks.conversations import encode_splits, read_prompt_conversation
from peftrun.tasks.examples import digest_rows, load_examples, read_label
from peftrun.tasks.messages import Conversation, are_messages
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class PromptExample:
    """One row: a prompt, and the true answer if there is one."""

    given: Conversation
    completion: str
    where: str = field(default="", compare=False)
    columns: str = (
        ""  # those of the source as JSON, if a reward of the user reads them: rows that differ only there are different
    )

    def iter_renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
        """See `Example.iter_renderings`."""
        yield self.given, True


@dataclass(frozen=True)
class Row:
    """The same as token ids."""

    prompt: list[int]
    answer: str
    where: str = field(default="", compare=False)
    columns: str = ""
    spelled: str = ""  # with `columns`: the prompt as JSON, in the form that the source has, a text or messages

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.prompt

    @property
    def as_trained(self) -> dict[str, Any]:
        """In the form of TRL's GRPOTrainer, which passes all columns on to the rewards."""
        trained = {"prompt": self.prompt, "answer": self.answer}
        return (
            trained | {"columns": self.columns, "spelled": self.spelled, "where": self.where}
            if self.columns
            else trained
        )


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's prompts, without those longer than `task.max_length` tokens.

    Raises: DataError: see `load_examples`.
    """
    end_tokens.require_eos_token_id(tokenizer)  # sampled answers must be able to end
    tally = Tally()
    train, held_out = load_examples(task, _render_prompt, tally)
    digest = digest_rows(
        [
            [example.given.as_json(), example.completion, *([example.columns] if example.columns else [])]
            for example in (*train, *held_out)
        ]
    )
    return Rows(*encode_splits(train, held_out, task, tokenizer, _encode_prompt, tally=tally), digest, tally)


def _render_prompt(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> PromptExample:
    values = row | ({"label": read_label(where, row, task.data)} if task.data.label_column else {})
    return PromptExample(
        read_prompt_conversation(where, values, task),
        fill_template(where, task.completion_template, values) or "",
        where,
    )


def _spell_prompt(given: Conversation, values: dict[str, Any], task: TaskSpec) -> str:
    column = get_sole_column(task.prompt_template)
    holds_messages = task.messages_column is not None or (
        column is not None and are_messages(get_column_value(values, column))
    )
    return json.dumps(given.messages if holds_messages else given.messages[-1].text, ensure_ascii=False, default=str)


def _encode_prompt(example: PromptExample, task: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(example.where, example.given)
    row = Row(encoder.prompt(example.given), example.completion, example.where, example.columns)
    if example.columns:
        return replace(row, spelled=_spell_prompt(example.given, json.loads(example.columns), task))
    return row
