"""Rows of task type `unpaired_preference`: a prompt, an answer, and whether it is wanted, as token ids."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import fill_template
from peftrun.errors import DataError
from peftrun.tasks.conversations import encode_splits, read_conversation, read_prompt_conversation
from peftrun.tasks.examples import digest_rows, load_examples
from peftrun.tasks.messages import ASSISTANT, ROW_ADVICE, Conversation, Message, make_message
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class UnpairedExample:
    """One row: a prompt, an answer, and whether it is wanted."""

    given: Conversation
    completion: Message
    desirable: bool
    where: str = field(default="", compare=False)

    def iter_renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
        """See `Example.iter_renderings`."""
        yield self.given.followed_by(self.completion), False
        yield self.given, True


@dataclass(frozen=True)
class Row:
    """The same as token ids."""

    prompt: list[int]
    completion: list[int]
    desirable: bool
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.completion

    @property
    def as_trained(self) -> dict[str, Any]:
        """In the form of TRL's KTOTrainer."""
        return {"prompt_ids": self.prompt, "completion_ids": self.completion, "label": self.desirable}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's labeled answers, without those longer than `task.max_length` tokens.

    Raises: DataError: see `load_examples`; or a label is neither true nor false, or all are the same.
    """
    tally = Tally()
    examples = load_examples(task, _render_unpaired, tally)
    train, held_out = encode_splits(*examples, task, tokenizer, _encode_answer, tally=tally)
    labels = {row.desirable for row in train}
    if len(labels) < 2:
        raise DataError(
            f"task.desirable_column={task.desirable_column}: every training row says {str(labels.pop()).lower()}; KTO needs both kinds"
        )
    digest = digest_rows(
        [[row.given.as_json(), row.completion.digest_value, row.desirable] for split in examples for row in split]
    )
    return Rows(train, held_out, digest, tally)


def _render_unpaired(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> UnpairedExample:
    assert task.desirable_column is not None
    label = str(row[task.desirable_column]).strip().lower()
    if label not in TRUE + FALSE:
        raise DataError(
            f"{where}: {task.desirable_column}={row[task.desirable_column]} is neither true nor false; {ROW_ADVICE}"
        )
    conversation = read_conversation(where, row, task)
    if conversation is None:
        answer = make_message(ASSISTANT, fill_template(where, task.completion_template, row) or "")
        return UnpairedExample(read_prompt_conversation(where, row, task), answer, label in TRUE, where)
    *prompt, answer = conversation.messages
    if answer["role"] != ASSISTANT or all(message["role"] == "system" for message in prompt):
        raise DataError(
            f"{where}: column {task.messages_column or task.completion_template} must end with the assistant's answer to something; {ROW_ADVICE}"
        )
    return UnpairedExample(conversation.before(len(prompt)), answer, label in TRUE, where)


def _encode_answer(example: UnpairedExample, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(example.where, example.given.followed_by(example.completion))
    prompt, (completion,) = encoder.answered(example.given, [example.completion])
    return Row(prompt, completion, example.desirable, example.where)
