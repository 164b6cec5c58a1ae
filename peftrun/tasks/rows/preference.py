"""Rows of task type `preference`: a prompt and two answers, one of them chosen, as token ids."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.objectives import RewardObjective
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks.conversations import encode_splits, read_answer, read_prompt_conversation
from peftrun.tasks.examples import digest_rows, load_examples
from peftrun.tasks.messages import Conversation, Message
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class PreferenceExample:
    """One row: a prompt and two answers."""

    given: Conversation
    chosen: Message
    rejected: Message
    where: str = field(default="", compare=False)

    def iter_renderings(self, _: str) -> Iterator[tuple[Conversation, bool]]:
        """See `Example.iter_renderings`."""
        yield from ((self.given.followed_by(answer), False) for answer in (self.chosen, self.rejected))
        yield self.given, True


@dataclass(frozen=True)
class Row:
    """A pair as token ids. `rewarded`: for a reward model, which scores prompt and answer as one text."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    rewarded: bool = False
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and the longer answer."""
        return self.prompt + max(self.chosen, self.rejected, key=len)

    @property
    def as_trained(self) -> dict[str, Any]:
        """In the form of TRL's trainers."""
        if self.rewarded:  # RewardTrainer
            return {"chosen_ids": self.prompt + self.chosen, "rejected_ids": self.prompt + self.rejected}
        return {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's pairs, without those longer than `task.max_length` tokens.

    Raises: DataError: see `load_examples`; or both answers of a row are the same.
    """
    tally = Tally()
    train, held_out = load_examples(task, _render_pair, tally)
    digest = digest_rows(
        [[row.given.as_json(), row.chosen.digest_value, row.rejected.digest_value] for row in (*train, *held_out)]
    )
    return Rows(*encode_splits(train, held_out, task, tokenizer, _encode_pair, tally=tally), digest, tally)


def _render_pair(where: str, row: dict[str, Any], task: TaskSpec, _: tuple[str, ...]) -> PreferenceExample:
    assert task.chosen_column is not None and task.rejected_column is not None
    given = read_prompt_conversation(where, row, task)
    chosen, rejected = (read_answer(where, row, column) for column in (task.chosen_column, task.rejected_column))
    if chosen == rejected:
        raise DataError(
            f"{where}: columns {task.chosen_column} and {task.rejected_column} are the same answer, so nothing is preferred; remove the row"
        )
    return PreferenceExample(given, chosen, rejected, where)


def _encode_pair(example: PreferenceExample, task: TaskSpec, encoder: Encoder) -> Row:
    answers = [example.chosen, example.rejected]
    for answer in answers:
        encoder.check(example.where, example.given.followed_by(answer))
    prompt, (chosen, rejected) = encoder.answered(example.given, answers)
    return Row(prompt, chosen, rejected, isinstance(task.objective, RewardObjective), example.where)
