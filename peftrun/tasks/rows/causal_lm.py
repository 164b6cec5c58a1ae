"""Rows of kind `causal_lm`: a prompt and its completion, a conversation, or a plain text, as token ids."""

from dataclasses import dataclass, field, replace
from typing import Any

from peftrun import console
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.tasks.conversations import drop_too_long, prefetch_examples
from peftrun.tasks.examples import Example, digest_examples, load_examples
from peftrun.tasks.length_checks import IGNORE_INDEX
from peftrun.tasks.messages import ASSISTANT, make_message, prefix_errors
from peftrun.tasks.row_counts import SILENT, SINGLE, Tally
from peftrun.tasks.rows import Rows
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class Row:
    """One example as token ids. `candidates[answer]` is the true completion, the others are what else it could be."""

    prompt: list[int]
    completion: list[int]
    candidates: list[list[int]]
    answer: int
    adapter: str | None = None  # who is to answer; None: the active one
    learned: list[tuple[int, int]] | None = None  # spans of `ids` that carry loss; None: the completion
    where: str = field(default="", compare=False)

    @property
    def ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def labels(self) -> list[int]:
        """`ids` where they are learned, `IGNORED` elsewhere."""
        found = [IGNORE_INDEX] * len(self.ids)
        for begin, end in self.learned or [(len(self.prompt), len(self.ids))]:
            found[begin:end] = self.ids[begin:end]
        return found

    @property
    def as_trained(self) -> dict[str, list[int]]:
        """As the loop takes it: no loss but on what is learned."""
        return {"input_ids": self.ids, "labels": self.labels}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows as tokens. Rows longer than `task.max_length` are left out, and counted aloud.

    Raises: DataError: see `data.load_examples`; or no row fits.
    """
    tally = Tally()
    train, held_out = load_examples(task, tally=tally)
    encoder = Encoder(tokenizer, task)
    return Rows(
        _encode_fitting(train, task, encoder, "training", tally),
        _encode_fitting(held_out, task, encoder, "held-out", tally),
        digest_examples([*train, *held_out]),
        tally,
    )


def _encode_example(example: Example, task: TaskSpec, encoder: Encoder, *, learned: bool) -> list[Row]:
    """One row; of a plain text as many as `task.max_length` asks for; of a conversation held out for all its answers, one for each. None where
    the row says that what would be learned of it is not."""
    with prefix_errors(example.where):
        encoder.check(example.where, example.conversation, "" if example.conversation else example.completion)
        if not example.conversation:
            return _chunk_text(example, task, encoder)
        if learned:
            return _encode_learned(example, task, encoder)
        answers = example.conversation.answers if task.loss_on == "assistant" else example.conversation.answers[-1:]
        wanted = [place for place in answers if place not in example.conversation.unlearned]
        return [_build_row(example.truncate_after(place), encoder) for place in wanted]


def _encode_learned(example: Example, task: TaskSpec, encoder: Encoder) -> list[Row]:
    row = _build_row(example, encoder)
    whole = example.conversation
    if task.loss_on == "completion" and len(whole.messages) - 1 in whole.unlearned:
        return []
    spans = encoder.learned(whole, row.ids, len(row.prompt), task.loss_on)
    plain = spans == [(len(row.prompt), len(row.ids))]
    return [replace(row, learned=None if plain else spans)] if spans else []


def _build_row(example: Example, encoder: Encoder) -> Row:
    *_, last = example.conversation.messages
    answers = [make_message(ASSISTANT, choice) for choice in example.choices] or [last]
    answer = example.choices.index(example.completion) if example.choices else 0
    prompt, candidates = encoder.answered(example.given, answers)
    return Row(prompt, candidates[answer], candidates, answer, example.adapter, where=example.where)


def _chunk_text(example: Example, task: TaskSpec, encoder: Encoder) -> list[Row]:
    """A plain text, cut where it is longer than a row may be; of each piece the first token is given, the rest is learned."""
    ids = encoder.text(example.completion)
    parts = [ids[start : start + task.max_length] for start in range(0, len(ids), task.max_length)]
    return [
        Row(part[:1], part[1:], [part[1:]], 0, example.adapter, where=example.where) for part in parts if len(part) > 1
    ]


def _encode_fitting(examples: list[Example], task: TaskSpec, encoder: Encoder, which: str, tally: Tally) -> list[Row]:
    learned = which == "training"
    made = [
        (one, _encode_example(one, task, encoder, learned=learned))
        for one in prefetch_examples(examples, encoder, task.loss_on)
    ]
    encoder.report_remarks(which)
    rows = [row for _, found in made for row in found]
    tally.left_out += [(one.where, SILENT if one.conversation else SINGLE, 0) for one, found in made if not found]
    silent = [one.where for one, found in made if not found and one.conversation]
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        console.print_info(
            f"data: nothing is learned of {len(silent)} {which} rows, whose answers have weight 0 or train false: "
            f"{', '.join(silent[:3])}{more}; left out"
        )
    if not rows:
        raise DataError(_explain_no_rows(examples, which, bool(silent)))
    if len(rows) + len(silent) > len(examples):
        console.print_info(f"data: {len(examples)} {which} texts make {len(rows)} rows")
    return drop_too_long(rows, lambda row: len(row.ids), task, which, tally)


def _explain_no_rows(examples: list[Example], which: str, silent: bool) -> str:
    if silent:
        return f"task.messages: every answer of the {len(examples)} {which} rows has weight 0 or train false; give one of them weight 1"
    return f"task.completion: each of the {len(examples)} {which} texts is a single token; name longer ones"
