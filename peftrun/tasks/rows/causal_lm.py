"""Rows of task type `causal_lm`: a prompt and its completion, a conversation, or a plain text, as token ids."""

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
    """One example as token ids. `candidates[answer]` is the true completion, the other candidates are the other choices."""

    prompt: list[int]
    completion: list[int]
    candidates: list[list[int]]
    answer: int
    adapter: str | None = None  # name of the adapter to evaluate with; None: the active one
    learned: list[tuple[int, int]] | None = None  # spans of `ids` that carry loss; None: the completion
    where: str = field(default="", compare=False)
    columns: str = field(default="", compare=False)  # see `Example.columns`

    @property
    def ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def labels(self) -> list[int]:
        """`ids` with loss, IGNORE_INDEX elsewhere."""
        labels = [IGNORE_INDEX] * len(self.ids)
        for begin, end in self.learned or [(len(self.prompt), len(self.ids))]:
            labels[begin:end] = self.ids[begin:end]
        return labels

    @property
    def as_trained(self) -> dict[str, list[int]]:
        """In the trainer's form."""
        return {"input_ids": self.ids, "labels": self.labels}


def load_rows(task: TaskSpec, tokenizer: Any) -> Rows:
    """The task's rows, without those longer than `task.max_length` tokens.

    Raises: DataError: see `load_examples`; or no row fits.
    """
    tally = Tally()
    train, held_out = load_examples(task, tally=tally)
    encoder = Encoder(tokenizer, task)
    return Rows(
        _encode_fitting(train, task, encoder, "training", tally),
        _encode_fitting(held_out, task, encoder, "evaluation", tally),
        digest_examples([*train, *held_out]),
        tally,
    )


def _encode_example(example: Example, task: TaskSpec, encoder: Encoder, *, learned: bool) -> list[Row]:
    """The rows of an example.

    A plain text is split into chunks of `task.max_length` tokens; for evaluation, a conversation has one row per answer that
    `task.loss_on` selects. Empty if the example excludes all its answers from the loss.
    """
    conversation = example.conversation
    with prefix_errors(example.where):
        encoder.check(example.where, conversation, "" if conversation else example.completion)
        if not conversation:
            ids = encoder.text(example.completion)
            chunks = [ids[start : start + task.max_length] for start in range(0, len(ids), task.max_length)]
            # The first token of a chunk is its prompt: nothing predicts it.
            return [
                Row(chunk[:1], chunk[1:], [chunk[1:]], 0, example.adapter, where=example.where)
                for chunk in chunks
                if len(chunk) > 1
            ]
        if learned:
            row = _build_row(example, encoder)
            if task.loss_on == "completion" and len(conversation.messages) - 1 in conversation.unlearned:
                return []
            spans = encoder.learned(conversation, row.ids, len(row.prompt), task.loss_on)
            completion_only = spans == [(len(row.prompt), len(row.ids))]
            return [replace(row, learned=None if completion_only else spans)] if spans else []
        answers = conversation.answers if task.loss_on == "assistant" else conversation.answers[-1:]
        return [
            _build_row(example.truncate_after(index), encoder)
            for index in answers
            if index not in conversation.unlearned
        ]


def split_answers(row: Row) -> list[Row]:
    """A row for each answer that carries loss in a training row of a conversation, as evaluation rows have them."""
    spans = row.learned or [(len(row.prompt), len(row.ids))]
    return [
        replace(
            row,
            prompt=row.ids[:begin],
            completion=row.ids[begin:end],
            candidates=[row.ids[begin:end]],
            answer=0,
            learned=None,
        )
        for begin, end in spans
    ]


def _build_row(example: Example, encoder: Encoder) -> Row:
    *_, last = example.conversation.messages
    answers = [make_message(ASSISTANT, choice) for choice in example.choices] or [last]
    answer = example.choices.index(example.completion) if example.choices else 0
    prompt, candidates = encoder.answered(example.given, answers)
    row = Row(prompt, candidates[answer], candidates, answer, example.adapter)
    return replace(row, where=example.where, columns=example.columns)


def _encode_fitting(examples: list[Example], task: TaskSpec, encoder: Encoder, which: str, tally: Tally) -> list[Row]:
    """The rows of a split that fit into `task.max_length`; logs what is left out. Raises: DataError: none is left."""
    rows: list[Row] = []
    empty = []  # examples without a row
    for example in prefetch_examples(examples, encoder, task.loss_on):
        encoded = _encode_example(example, task, encoder, learned=which == "training")
        rows += encoded
        empty += [] if encoded else [example]
    encoder.report_remarks(which)
    tally.left_out += [(example.where, SILENT if example.conversation else SINGLE, 0) for example in empty]
    silent = [example.where for example in empty if example.conversation]
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        console.print_info(
            f"data: nothing is learned of {len(silent)} {which} rows, whose answers have weight 0 or train false: "
            f"{', '.join(silent[:3])}{more}; left out"
        )
    if not rows:
        raise DataError(
            f"task.messages_column: every answer of the {len(examples)} {which} rows has weight 0 or train false; give one of them weight 1"
            if silent
            else f"task.completion_template: each of the {len(examples)} {which} texts is a single token; name longer ones"
        )
    if len(rows) + len(silent) > len(examples):  # plain texts in chunks, or answers of conversations
        console.print_info(f"data: {len(examples)} {which} texts make {len(rows)} rows")
    return drop_too_long(rows, lambda row: len(row.ids), task, which, tally)
