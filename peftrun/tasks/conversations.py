"""Rows as conversations: prompts, answers, and their encoding as token ids."""

from collections.abc import Callable, Iterator
from typing import Any

from peftrun import console
from peftrun.config.schema.run import TaskSpec
from peftrun.data import templates
from peftrun.data.templates import fill_template
from peftrun.errors import DataError
from peftrun.tasks.messages import (
    ASSISTANT,
    ROW_ADVICE,
    Conversation,
    Message,
    are_messages,
    build_system_messages,
    make_message,
    parse_conversation,
    prefix_errors,
)
from peftrun.tasks.row_counts import Tally
from peftrun.tasks.token_ids import batch_items
from peftrun.tasks.tokenization import Encoder


def read_conversation(where: str, row: dict[str, Any], task: TaskSpec) -> Conversation | None:
    """The conversation in column `task.messages_column`, or in the columns of prompt and completion (TRL's form); None if these hold texts.

    Raises: DataError: a column holds no conversation.
    """
    if task.messages_column is not None:
        return parse_conversation(
            where, row[task.messages_column], task.messages_column, row.get("tools"), task.system_prompt
        )
    column = templates.get_sole_column(task.completion_template)
    value = templates.get_column_value(row, column) if column else None
    if column is None or not are_messages(value):
        return None
    answer = parse_conversation(where, value, column)
    if len(answer.messages) > 1:
        raise DataError(
            f"{where}: column {column} holds {len(answer.messages)} messages, and one is the answer; put the whole conversation "
            "into one column and type task.messages_column=COLUMN"
        )
    prompt = render_prompt(where, row, task)
    unlearned = (*prompt.unlearned, *(len(prompt.messages) + index for index in answer.unlearned))
    return Conversation((*prompt.messages, *answer.messages), prompt.tools, unlearned)


def render_prompt(where: str, row: dict[str, Any], task: TaskSpec) -> Conversation:
    """The prompt of a row by `task.prompt_template`: the messages in the column that it names, or its template filled in; empty without one.

    Raises: DataError: a column is empty, or its messages end with an answer.
    """
    if task.prompt_template is None:
        return Conversation()
    column = templates.get_sole_column(task.prompt_template)
    value = templates.get_column_value(row, column) if column else None
    if column is not None and are_messages(value):
        return check_unanswered(
            where, parse_conversation(where, value, column, row.get("tools"), task.system_prompt), column
        )
    return Conversation(
        (
            *build_system_messages(task.system_prompt),
            make_message("user", fill_template(where, task.prompt_template, row) or ""),
        )
    )


def read_prompt_conversation(where: str, row: dict[str, Any], task: TaskSpec) -> Conversation:
    """The prompt of an answer: the conversation in column `task.messages_column`, else `render_prompt`.

    Raises: DataError: a column is empty, or holds no conversation.
    """
    if task.messages_column is None:
        return render_prompt(where, row, task)
    prompt = parse_conversation(
        where, row[task.messages_column], task.messages_column, row.get("tools"), task.system_prompt
    )
    return check_unanswered(where, prompt, task.messages_column)


def read_answer(where: str, row: dict[str, Any], column: str) -> Message:
    """An answer from a column: a text, a message, or a conversation whose last message is the answer.

    Raises: DataError: it is empty.
    """
    value = row[column]
    if not isinstance(value, str):
        return parse_conversation(where, value, column).messages[-1]
    if not value.strip():
        raise DataError(f"{where}: column {column} is empty; fill it or remove the row")
    return make_message(ASSISTANT, value)


def check_unanswered(where: str, conversation: Conversation, column: str) -> Conversation:
    """Returns the conversation. Raises: DataError: it ends with an answer."""
    if conversation.messages[-1]["role"] == ASSISTANT:
        raise DataError(
            f"{where}: column {column} ends with an answer; the last message must be the one to answer: {ROW_ADVICE}"
        )
    return conversation


def encode_splits(
    train: list[Any],
    held_out: list[Any],
    task: TaskSpec,
    tokenizer: Any,
    encode: Callable[[Any, TaskSpec, Encoder], Any],
    *,
    tally: Tally,
) -> tuple[list[Any], list[Any]]:
    """Training and evaluation rows as token ids, without those that are too long. Raises: DataError: with the location of the row."""

    def encode_split(examples: list[Any], which: str) -> list[Any]:
        rows = []
        for example in prefetch_examples(examples, encoder, task.loss_on):
            with prefix_errors(example.where):
                rows.append(encode(example, task, encoder))
        encoder.report_remarks(which)
        return drop_too_long(rows, lambda row: len(row.ids), task, which, tally)

    encoder = Encoder(tokenizer, task)
    return encode_split(train, "training"), encode_split(held_out, "evaluation")


def prefetch_examples(examples: list[Any], encoder: Encoder, loss_on: str) -> Iterator[Any]:
    """Yields each example after its batch is tokenized in one call."""
    for batch in batch_items(examples):
        renderings = [rendering for example in batch for rendering in example.iter_renderings(loss_on)]
        # Without renderings these are plain texts.
        encoder.read_ahead(renderings, [] if renderings else [example.completion for example in batch])
        yield from batch


def drop_too_long(rows: list[Any], length: Callable[[Any], int], task: TaskSpec, which: str, tally: Tally) -> list[Any]:
    """The rows of at most `task.max_length` tokens; logs how many are left out.

    Raises: DataError: none is left.
    """
    fitting = [row for row in rows if length(row) <= task.max_length]
    if not fitting:
        shortest = min(map(length, rows))
        raise DataError(
            f"task.max_length={task.max_length}: every one of the {len(rows)} {which} rows is longer "
            # The next power of two.
            f"(the shortest has {shortest} tokens); type task.max_length={2 ** max(shortest - 1, 1).bit_length()}"
        )
    if len(fitting) < len(rows):
        longer = [row for row in rows if length(row) > task.max_length]
        tally.left_out += [(row.where, f"longer than task.max_length={task.max_length}", length(row)) for row in longer]
        console.print_info(
            f"data: {len(longer)} of {len(rows)} {which} rows are longer than {task.max_length} tokens, left out"
        )
    return fitting
