"""Loads rows as examples (prompt and completion): deduplicated, balanced, mixed and split."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from peftrun import console
from peftrun.artifacts import function_files
from peftrun.config.schema.run import DataSpec, TaskSpec
from peftrun.data import columns, files, sources, templates
from peftrun.data.templates import fill_template
from peftrun.errors import DataError
from peftrun.tasks import conversations, mixing
from peftrun.tasks.messages import ASSISTANT, ROW_ADVICE, Conversation, make_message
from peftrun.tasks.row_counts import REPEATED, UNBALANCED, Tally


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with the answer, or a plain text (no messages). `choices`: possible answers, if they are limited."""

    conversation: Conversation
    completion: str  # the text of the answer, or the plain text
    choices: tuple[str, ...] = ()
    adapter: str | None = None  # name of the adapter to evaluate with, from `task.data.adapter_column`
    where: str = field(default="", compare=False)  # `SOURCE: row N`, for messages
    cut: bool = field(default=False, compare=False)  # messages after the last answer are dropped
    columns: str = field(default="", compare=False)  # those of the source as JSON, if a metric of the user reads them

    @property
    def given(self) -> Conversation:
        """The prompt: the messages before the answer."""
        return self.conversation.before(len(self.conversation.messages) - 1)

    def iter_renderings(self, loss_on: str) -> Iterator[tuple[Conversation, bool]]:
        """The conversations that encoding needs, each with whether a generation prompt follows; for `Encoder.read_ahead`."""
        whole = self.conversation
        if not whole:
            return
        earlier = whole.answers[:-1] if loss_on == "assistant" else []
        yield whole, False
        yield from ((whole.before(index), True) for index in (*earlier, len(whole.messages) - 1))
        yield from ((whole.before(index).followed_by(whole.messages[index]), False) for index in earlier)
        yield from ((self.given.followed_by(make_message(ASSISTANT, text)), False) for text in self.choices)

    def truncate_after(self, index: int) -> "Example":
        """The example that ends with an earlier answer."""
        answer = self.conversation.messages[index]
        return replace(self, conversation=self.conversation.before(index).followed_by(answer), completion=answer.text)


def load_examples(
    task: TaskSpec, render: Callable[..., Any] | None = None, tally: Tally | None = None
) -> tuple[list[Any], list[Any]]:
    """Training and evaluation examples, disjoint, in an order that depends only on `task.data.split_seed`.

    Args:
        render: makes something other than an Example of (where, row, task, choices).
        tally: collects the counts of rows.

    Raises: DataError: the file is empty or unreadable, a column is missing, a value is empty or no known label.
    """
    data, render, tally = task.data, render or render_example, tally or Tally()
    groups: dict[Any, str] = {}
    rows = _prepare_rows(_load_source(sources.get_train_source(data), task, render, tally, groups), data, tally)
    if data.mixture is not None:
        parts = {"task.data.path": (1.0, rows)}  # weight and rows of each source
        for name, mix in data.mixture.items():
            source = sources.make_mix_source(name, mix, data)
            mix_rows = _load_source(source, columns.apply_mix_templates(task, mix), render, tally)
            parts[name] = (mix.weight, _prepare_rows(mix_rows, data, tally))
        rows = mixing.mix_sources(parts, data.split_seed, tally)
    eval_source = sources.get_eval_source(data)
    if eval_source is not None:
        eval_rows = _load_source(eval_source, task, render, tally)
        held_out = eval_rows[: data.num_test_rows]
        tally.leave_out(eval_rows, held_out, f"beyond task.data.num_test_rows={data.num_test_rows}")
    else:
        _check_enough_rows(len(rows), data.num_test_rows)
        rows, held_out = _split_rows(rows, groups, data)
    train = rows[: data.num_train_rows]
    tally.leave_out(rows, train, f"beyond task.data.num_train_rows={data.num_train_rows}")
    train_set = set(train)  # equal rows: locations are not compared
    tally.seen += [row.where for row in held_out if row in train_set]
    return train, held_out


def _split_rows(rows: list[Any], groups: dict[Any, str], data: DataSpec) -> tuple[list[Any], list[Any]]:
    """(training, evaluation). Random rows were shuffled before, so the first ones are taken."""
    if data.group_column:
        return mixing.split_by_group(rows, groups, data.num_test_rows)
    if data.split_strategy == "last":
        return rows[: -data.num_test_rows], rows[-data.num_test_rows :]
    return rows[data.num_test_rows :], rows[: data.num_test_rows]


def _check_enough_rows(rows: int, eval_rows: int) -> None:
    if rows <= eval_rows:
        fewer = f"type task.data.num_test_rows={max(1, rows // 5)}, or " if rows > 1 else ""
        left = "only 1 row is" if rows == 1 else f"only {rows} rows are"
        raise DataError(
            f"task.data.num_test_rows={eval_rows}: {left} left; {fewer}name separate evaluation rows: task.data.test_path=FILE"
        )


def digest_examples(examples: Iterable[Example]) -> str:
    """sha256 of prompts and answers, in order."""
    return digest_rows([
        [example.given.as_json(), example.conversation.messages[-1].digest_value if example.conversation else example.completion]
        for example in examples
    ])  # fmt: skip


def digest_rows(rows: list[Any]) -> str:
    """sha256 of rows as JSON, in order."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=str).encode()).hexdigest()


def _load_source(
    source: sources.DataSource,
    task: TaskSpec,
    render: Callable[..., Any],
    tally: Tally,
    groups: dict[Any, str] | None = None,
) -> list[Any]:
    """The rendered rows of a source. Args: groups: is filled with example → group."""
    columns.check_source_columns(source, task)
    choices = tuple(dict.fromkeys(task.data.labels.values())) if task.data.labels else ()
    keeps_columns = bool(function_files.list_references(task))
    empty, examples = dict.fromkeys(columns.list_named_columns(task).values()), []
    for number, cells in enumerate(sources.read_source(task.data, source), 1):
        where = f"{source.label}: {files.format_row_location(number, getattr(cells, 'line', None))}"
        row = empty | cells  # a column that is missing in a row is empty there
        example = render(where, row, task, choices)
        if keeps_columns:
            example = replace(example, columns=json.dumps(row, ensure_ascii=False, default=str))
        examples.append(example)
        if groups is not None and task.data.group_column:
            group = row[task.data.group_column]
            groups[examples[-1]] = templates.format_column_value(where, task.data.group_column, group)
    tally.read[source.label] = len(examples)
    cut = [example.where for example in examples if isinstance(example, Example) and example.cut]
    tally.cut += cut
    if cut:
        console.print_info(
            f"data: {len(cut)} of {len(examples)} conversations end with messages that have no answer; these are left off ({cut[0]})"
        )
    return examples


def render_example(where: str, row: dict[str, Any], task: TaskSpec, choices: tuple[str, ...]) -> Example:
    """The example of a row. Raises: DataError: see `load_examples`."""
    labeled = task.data.label_column is not None and task.messages_column is None
    values = row | ({"label": read_label(where, row, task.data)} if labeled else {})
    conversation = conversations.read_conversation(where, values, task)
    if conversation is not None:
        answered = _cut_after_last_answer(where, conversation, task)
        cut = len(answered.messages) < len(conversation.messages)
        return Example(answered, answered.messages[-1].text, (), _read_adapter_name(where, row, task.data), where, cut)
    prompt = conversations.render_prompt(where, values, task)
    completion = fill_template(where, task.completion_template, values) or ""
    answered = prompt.followed_by(make_message(ASSISTANT, completion)) if prompt else prompt
    texts = tuple(
        fill_template(where, task.completion_template, {**values, "label": choice}) or "" for choice in choices
    )
    return Example(answered, completion, texts, _read_adapter_name(where, row, task.data), where)


def _cut_after_last_answer(where: str, whole: Conversation, task: TaskSpec) -> Conversation:
    """The conversation up to its last answer: what follows carries no loss and does not influence what does.

    Raises: DataError: it has no answer, or `task.loss_on` needs the answer at its end and it is missing.
    """
    if not whole.answers:
        raise DataError(f"{where}: has no message of the assistant, so nothing in it is learned; {ROW_ADVICE}")
    last = whole.answers[-1]
    if last == len(whole.messages) - 1 or task.loss_on == "assistant":
        return whole.before(last + 1)
    role = whole.messages[-1]["role"]
    other = "type task.loss_on=assistant to learn the answers before it, or " if task.type == "causal_lm" else ""
    raise DataError(
        f"{where}: its last message has role {role}, but task.loss_on={task.loss_on} learns the assistant's answer at the end; {other}{ROW_ADVICE}"
    )


def _read_adapter_name(where: str, row: dict[str, Any], data: DataSpec) -> str | None:
    if data.adapter_column is None:
        return None
    value = row[data.adapter_column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {data.adapter_column} must name an adapter; write its name, or base")
    return value


def read_label(where: str, row: dict[str, Any], data: DataSpec) -> str:
    """The word to learn for a row's label. Raises: DataError: the column is empty, or its value is not in `task.data.labels`."""
    assert data.label_column is not None
    value = templates.format_column_value(where, data.label_column, row[data.label_column])
    if not value.strip():
        raise DataError(f"{where}: column {data.label_column} is empty; fill it or remove the row")
    if data.labels is None:
        return value
    if value not in data.labels:
        raise DataError(
            f"{where}: {data.label_column}={value} is not among task.data.labels ({', '.join(data.labels)}); "
            f"add {value} to task.data.labels as it is spelled here (in quotes in a YAML file), or fix the row"
        )
    return data.labels[value]


def _prepare_rows(rows: list[Example], data: DataSpec, tally: Tally) -> list[Example]:
    """Deduplicates, shuffles and balances the rows of one source, as `task.data` asks."""
    if data.deduplicate:
        unique = list(dict.fromkeys(rows))
        if len(unique) < len(rows):
            console.print_info(f"data: {len(rows) - len(unique)} repeated rows left out of {len(rows)}")
            tally.leave_out(rows, unique, REPEATED)
        rows = unique
    rng = random.Random(data.split_seed)
    if data.split_strategy == "random":
        rows = rng.sample(rows, len(rows))
    if data.balance:
        # The first N rows of each completion in this order, N being the count of the rarest.
        rarest = min(Counter(row.completion for row in rows).values())
        unbalanced, rows, used = rows, [], Counter[str]()
        for row in unbalanced:
            used[row.completion] += 1
            if used[row.completion] <= rarest:
                rows.append(row)
        tally.leave_out(unbalanced, rows, UNBALANCED)
        if len(rows) < len(unbalanced):
            console.print_info(
                f"data: {len(unbalanced) - len(rows)} of {len(unbalanced)} rows left out, so that no label is more frequent than the rarest (task.data.balance=false keeps them)"
            )
        if data.split_strategy == "random":
            # Balancing leaves mostly rows of the rarest label at the end, and the split takes the first rows.
            rng.shuffle(rows)
    return rows
