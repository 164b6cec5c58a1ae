"""Rows rendered as prompts and completions; cleaned, balanced, split."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from peftrun import console
from peftrun.config.schema.run import DataSpec, TaskSpec
from peftrun.data import columns, files, sources, templates
from peftrun.data.templates import fill_template
from peftrun.errors import DataError
from peftrun.tasks import conversations, mixing
from peftrun.tasks.messages import ASSISTANT, ROW_ADVICE, Conversation, make_message
from peftrun.tasks.row_counts import REPEATED, UNBALANCED, Tally


@dataclass(frozen=True)
class Example:
    """One row: a conversation whose last message is learned; without messages a plain text. `choices`: what else the answer could be."""

    conversation: Conversation
    completion: str  # the text of the answer, or the plain text
    choices: tuple[str, ...] = ()
    adapter: str | None = None  # who is to answer it, where a column says so
    where: str = field(default="", compare=False)  # the file and the row's number in it, for messages
    cut: bool = field(default=False, compare=False)  # whether messages that nobody answers are left off

    @property
    def given(self) -> Conversation:
        """What comes before the answer."""
        return self.conversation.before(len(self.conversation.messages) - 1)

    def iter_renderings(self, loss_on: str) -> Iterator[tuple[Conversation, bool]]:
        """The conversations that it is told by, and whether an answer is to follow: what `Encoder.read_ahead` makes of many rows at once."""
        whole = self.conversation
        if not whole:
            return
        earlier = whole.answers[:-1] if loss_on == "assistant" else []
        yield whole, False
        yield from ((whole.before(place), True) for place in (*earlier, len(whole.messages) - 1))
        yield from ((whole.before(place).followed_by(whole.messages[place]), False) for place in earlier)
        yield from ((self.given.followed_by(make_message(ASSISTANT, one)), False) for one in self.choices)

    def truncate_after(self, place: int) -> "Example":
        """The same up to and with an earlier answer."""
        answer = self.conversation.messages[place]
        return replace(self, conversation=self.conversation.before(place).followed_by(answer), completion=answer.text)


def load_examples(
    task: TaskSpec, render: Callable[..., Any] | None = None, tally: Tally | None = None
) -> tuple[list[Any], list[Any]]:
    """Training and held-out examples, disjoint, in an order that `task.data.split_seed` alone decides.

    Args: render: makes something other than an Example of (where, row, task, choices). tally: is told what became of the rows.
    Raises: DataError: the file is empty or unreadable, a column is missing, a value is empty or no known label.
    """
    data, made, tally = task.data, render or render_example, tally or Tally()
    groups: dict[Any, str] = {}
    rows = _prepare_rows(_load_source(sources.get_train_source(data), task, made, tally, groups), data, tally)
    if data.mix is not None:
        rows = mixing.mix_sources(
            {"task.data.path": (1.0, rows)} | _load_mix_sources(task, made, tally), data.split_seed, tally
        )
    apart = sources.get_eval_source(data)
    if apart is not None:
        others = _load_source(apart, task, made, tally)
        held_out = others[: data.eval_rows]
        tally.leave_out(others, held_out, f"beyond task.data.eval_rows={data.eval_rows}")
    else:
        _check_enough_rows(len(rows), data.eval_rows)
        rows, held_out = _split_rows(rows, groups, data)
    train = rows[: data.train_rows]
    tally.leave_out(rows, train, f"beyond task.data.train_rows={data.train_rows}")
    learned = set(train)
    tally.seen += [row.where for row in held_out if row in learned]
    return train, held_out


def _split_rows(rows: list[Any], groups: dict[Any, str], data: DataSpec) -> tuple[list[Any], list[Any]]:
    if data.group_column:
        return mixing.split_by_group(rows, groups, data.eval_rows)
    if data.holdout == "last":
        return rows[: -data.eval_rows], rows[-data.eval_rows :]
    return rows[data.eval_rows :], rows[: data.eval_rows]


def _load_mix_sources(task: TaskSpec, render: Callable[..., Any], tally: Tally) -> dict[str, tuple[float, list[Any]]]:
    """Weight and rows of each further source, rendered by its own templates where it has some."""
    found = {}
    for name, one in (task.data.mix or {}).items():
        rows = _load_source(
            sources.make_mix_source(name, one, task.data), columns.apply_mix_templates(task, one), render, tally
        )
        found[name] = (one.weight, _prepare_rows(rows, task.data, tally))
    return found


def _check_enough_rows(rows: int, eval_rows: int) -> None:
    if rows <= eval_rows:
        some = f"type task.data.eval_rows={max(1, rows // 5)}, or " if rows > 1 else ""
        found = "only 1 row is" if rows == 1 else f"only {rows} rows are"
        raise DataError(
            f"task.data.eval_rows={eval_rows}: {found} left; {some}name held-out rows of their own: task.data.eval_path=FILE"
        )


def digest_examples(examples: Iterable[Example]) -> str:
    """sha256 of what is learned, in order."""
    return digest_rows([[one.given.as_json(), _serialize_answer(one)] for one in examples])


def digest_rows(rows: list[Any]) -> str:
    """sha256 of rows as JSON, in order."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=str).encode()).hexdigest()


def _serialize_answer(one: Example) -> Any:
    return one.conversation.messages[-1].digest_value if one.conversation else one.completion


def _load_source(
    source: sources.DataSource,
    task: TaskSpec,
    render: Callable[..., Any],
    tally: Tally,
    groups: dict[Any, str] | None = None,
) -> list[Any]:
    """Every row rendered; `groups` is given the group of each."""
    columns.check_source_columns(source, task)
    choices = tuple(dict.fromkeys(task.data.labels.values())) if task.data.labels else ()
    empty, made = dict.fromkeys(columns.list_named_columns(task).values()), []
    for number, found in enumerate(sources.read_source(task.data, source), 1):
        where = f"{source.told}: {files.format_row_location(number, getattr(found, 'line', None))}"
        row = empty | found  # a column that a row leaves out is empty there
        made.append(render(where, row, task, choices))
        if groups is not None and task.data.group_column:
            groups[made[-1]] = templates.format_column_value(where, task.data.group_column, row[task.data.group_column])
    tally.read[source.told] = len(made)
    _say_cut(made, tally)
    return made


def _say_cut(rows: list[Any], tally: Tally) -> None:
    cut = [one.where for one in rows if isinstance(one, Example) and one.cut]
    tally.cut += cut
    if cut:
        console.print_info(
            f"data: {len(cut)} of {len(rows)} conversations end with messages that nobody answers, left off ({cut[0]})"
        )


def render_example(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    """One row rendered. Raises: DataError: see `load_examples`."""
    labelled = task.data.label_column is not None and task.messages is None
    values = row | ({"label": read_label(where, row, task.data)} if labelled else {})
    conversation = conversations.read_conversation(where, values, task)
    if conversation is not None:
        answered = _to_last_answer(where, conversation, task)
        cut = len(answered.messages) < len(conversation.messages)
        return Example(answered, answered.messages[-1].text, (), _read_adapter_name(where, row, task.data), where, cut)
    given, completion = (
        conversations.render_prompt(where, values, task),
        fill_template(where, task.completion, values) or "",
    )
    answered = given.followed_by(make_message(ASSISTANT, completion)) if given else given
    fixed = tuple(fill_template(where, task.completion, {**values, "label": choice}) or "" for choice in choices)
    return Example(answered, completion, fixed, _read_adapter_name(where, row, task.data), where)


def _to_last_answer(where: str, whole: Conversation, task: TaskSpec) -> Conversation:
    """The conversation without what stands behind its last answer, where answers are learned: it carries no loss, nor changes what does.

    Raises: DataError: it holds no answer, or ends otherwise than with the one that is learned.
    """
    if not whole.answers:
        raise DataError(f"{where}: holds no message of the assistant's, so nothing in it is learned; {ROW_ADVICE}")
    last = whole.answers[-1]
    if last == len(whole.messages) - 1 or task.loss_on == "assistant":
        return whole.before(last + 1)
    role = whole.messages[-1]["role"]
    other = "type task.loss_on=assistant to learn the answers before it, or " if task.kind == "causal_lm" else ""
    raise DataError(
        f"{where}: its last message is of role {role} and must be the assistant's, which task.loss_on={task.loss_on} learns; {other}{ROW_ADVICE}"
    )


def _read_adapter_name(where: str, row: dict[str, Any], data: DataSpec) -> str | None:
    if data.adapter_column is None:
        return None
    value = row[data.adapter_column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {data.adapter_column} must name an adapter; write its name, or base")
    return value


def read_label(where: str, row: dict[str, Any], data: DataSpec) -> str:
    """The word that stands for a row's label. Raises: DataError: the column is empty, or holds another than `task.data.labels`."""
    assert data.label_column is not None
    value = templates.format_column_value(where, data.label_column, row[data.label_column])
    if not value.strip():
        raise DataError(f"{where}: column {data.label_column} is empty; fill it or remove the row")
    if data.labels is None:
        return value
    if value not in data.labels:
        raise DataError(
            f"{where}: {data.label_column}={value} is not among task.data.labels ({', '.join(data.labels)}); "
            f"add {value} to task.data.labels as it is spelled here (in quotes in a YAML file), or mend the row"
        )
    return data.labels[value]


def _prepare_rows(rows: list[Example], data: DataSpec, tally: Tally) -> list[Example]:
    if data.deduplicate:
        unique = list(dict.fromkeys(rows))
        if len(unique) < len(rows):
            console.print_info(f"data: {len(rows) - len(unique)} repeated rows left out of {len(rows)}")
            tally.leave_out(rows, unique, REPEATED)
        rows = unique
    draw = random.Random(data.split_seed)
    if data.holdout == "random":
        rows = draw.sample(rows, len(rows))
    if data.balance:
        # Shuffled again: the rarest completion's rows come last to the balance, and the split takes the first rows.
        whole, rows = rows, _balance_rows(rows)
        tally.leave_out(whole, rows, UNBALANCED)
        if len(rows) < len(whole):
            console.print_info(
                f"data: {len(whole) - len(rows)} of {len(whole)} rows left out, so that no label is more frequent than the rarest (task.data.balance=false keeps them)"
            )
        if data.holdout == "random":
            draw.shuffle(rows)
    return rows


def _balance_rows(rows: list[Example]) -> list[Example]:
    """As many rows of each completion as of the rarest, the order kept."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.completion] = counts.get(row.completion, 0) + 1
    rarest, taken, kept = min(counts.values()), dict.fromkeys(counts, 0), []
    for row in rows:
        if taken[row.completion] < rarest:
            taken[row.completion] += 1
            kept.append(row)
    return kept
