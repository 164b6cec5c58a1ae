"""Rows of kind `prompt_only`: a prompt as token ids, and the true answer if there is one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import fill
from peftrun.tasks import end_tokens
from peftrun.tasks.conversations import encoded, given_of
from peftrun.tasks.examples import digest_of, label, load_examples
from peftrun.tasks.messages import Conversation
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class Asked:
    """One row: what is given, and the true answer, if there is one."""

    given: Conversation
    completion: str
    where: str = field(default="", compare=False)

    def renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
        """See `Example.renderings`."""
        yield self.given, True


@dataclass(frozen=True)
class Row:
    """The same as token ids."""

    prompt: list[int]
    answer: str
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.prompt

    @property
    def as_trained(self) -> dict[str, Any]:
        """As the loop takes it."""
        return {"prompt": self.prompt, "answer": self.answer}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's prompts. Those longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`.
    """
    end_tokens.eos(tokenizer)  # answers that are drawn must be able to end
    tally = Tally()
    train, held_out = load_examples(task, _asked, tally)
    said = [[one.given.as_json(), one.completion] for one in (*train, *held_out)]
    rows = encoded(train, held_out, task, tokenizer, _encode, tally=tally)
    return Rows(*rows, digest_of(said), tally)


def _asked(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Asked:
    labelled = row | ({"label": label(where, row, task.data)} if task.data.label_column else {})
    return Asked(given_of(where, labelled, task), fill(where, task.completion, labelled) or "", where)


def _encode(one: Asked, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(one.where, one.given)
    return Row(encoder.prompt(one.given), one.completion, one.where)
