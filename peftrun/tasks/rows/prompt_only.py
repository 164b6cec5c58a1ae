"""Rows of kind `prompt_only`: a prompt as token ids, and the true answer if there is one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.data.templates import fill_template
from peftrun.tasks import end_tokens
from peftrun.tasks.conversations import encode_splits, read_prompt_conversation
from peftrun.tasks.examples import digest_rows, load_examples, read_label
from peftrun.tasks.messages import Conversation
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class PromptExample:
    """One row: what is given, and the true answer, if there is one."""

    given: Conversation
    completion: str
    where: str = field(default="", compare=False)

    def iter_renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
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
    end_tokens.require_eos_token_id(tokenizer)  # answers that are drawn must be able to end
    tally = Tally()
    train, held_out = load_examples(task, _render_example, tally)
    said = [[one.given.as_json(), one.completion] for one in (*train, *held_out)]
    rows = encode_splits(train, held_out, task, tokenizer, _encode_prompt, tally=tally)
    return Rows(*rows, digest_rows(said), tally)


def _render_example(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> PromptExample:
    labelled = row | ({"label": read_label(where, row, task.data)} if task.data.label_column else {})
    return PromptExample(
        read_prompt_conversation(where, labelled, task), fill_template(where, task.completion, labelled) or "", where
    )


def _encode_prompt(one: PromptExample, _: TaskSpec, encoder: Encoder) -> Row:
    encoder.check(one.where, one.given)
    return Row(encoder.prompt(one.given), one.completion, one.where)
