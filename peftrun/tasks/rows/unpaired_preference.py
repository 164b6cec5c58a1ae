"""Rows of kind `unpaired_preference`: a prompt, an answer, and whether it is wanted, as token ids."""

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
    """One row: what is given, an answer, and whether it is wanted."""

    given: Conversation
    completion: Message
    desirable: bool
    where: str = field(default="", compare=False)

    def iter_renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
        """See `Example.renderings`."""
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
        """As the loop takes it."""
        return {"prompt_ids": self.prompt, "completion_ids": self.completion, "label": self.desirable}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's judged answers. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or a judgement is neither true nor false.
    """
    tally = Tally()
    train, held_out = load_examples(task, _render_unpaired, tally)
    said = [[one.given.as_json(), one.completion.digest_value, one.desirable] for one in (*train, *held_out)]
    first, second = encode_splits(train, held_out, task, tokenizer, _encode_answer, tally=tally)
    both = {row.desirable for row in first}
    if len(both) < 2:
        raise DataError(
            f"task.desirable={task.desirable}: every training row says {str(both.pop()).lower()}; KTO needs both kinds"
        )
    return Rows(first, second, digest_rows(said), tally)


def _render_unpaired(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> UnpairedExample:
    assert task.desirable is not None
    said = str(row[task.desirable]).strip().lower()
    if said not in TRUE + FALSE:
        raise DataError(
            f"{where}: {task.desirable}={row[task.desirable]} is neither true nor false; mend or remove the row"
        )
    whole = read_conversation(where, row, task)
    if whole is None:
        answer = make_message(ASSISTANT, fill_template(where, task.completion, row) or "")
        return UnpairedExample(read_prompt_conversation(where, row, task), answer, said in TRUE, where)
    last = len(whole.messages) - 1
    if whole.messages[last]["role"] != ASSISTANT or not any(one["role"] != "system" for one in whole.messages[:last]):
        raise DataError(
            f"{where}: column {task.messages or task.completion} must end with the assistant's answer to something; {ROW_ADVICE}"
        )
    return UnpairedExample(whole.before(last), whole.messages[last], said in TRUE, where)


def _encode_answer(one: UnpairedExample, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(one.where, one.given.followed_by(one.completion))
    prompt, (completion,) = encoder.answered(one.given, [one.completion])
    return Row(prompt, completion, one.desirable, one.where)
