"""What a row says: a conversation, what is given in it, an answer."""

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
    """The conversation in column `task.messages`, or in the columns that prompt and completion name (TRL's form); None: they hold texts.

    Raises: DataError: a column holds none.
    """
    if task.messages is not None:
        return parse_conversation(where, row[task.messages], task.messages, row.get("tools"), task.system)
    column = templates.get_sole_column(task.completion)
    found = templates.get_column_value(row, column) if column else None
    if column is None or not are_messages(found):
        return None
    answer = parse_conversation(where, found, column)
    if len(answer.messages) > 1:
        raise DataError(
            f"{where}: column {column} holds {len(answer.messages)} messages, and one is the answer; put the whole conversation "
            "into one column and type task.messages=COLUMN"
        )
    given = render_prompt(where, row, task)
    unlearned = (*given.unlearned, *(len(given.messages) + place for place in answer.unlearned))
    return Conversation((*given.messages, *answer.messages), given.tools, unlearned)


def render_prompt(where: str, row: dict[str, Any], task: TaskSpec) -> Conversation:
    """What `task.prompt` gives: the messages in the column that it names, or its text filled in; nothing where there is no prompt.

    Raises: DataError: a column is empty, or its messages end with an answer.
    """
    if task.prompt is None:
        return Conversation()
    column = templates.get_sole_column(task.prompt)
    found = templates.get_column_value(row, column) if column else None
    if column is not None and are_messages(found):
        return check_unanswered(where, parse_conversation(where, found, column, row.get("tools"), task.system), column)
    return Conversation(
        (*build_system_messages(task.system), make_message("user", fill_template(where, task.prompt, row) or ""))
    )


def read_prompt_conversation(where: str, row: dict[str, Any], task: TaskSpec) -> Conversation:
    """What an answer answers: the conversation in column `task.messages`, or what `task.prompt` gives.

    Raises: DataError: a column is empty, or holds no conversation.
    """
    if task.messages is None:
        return render_prompt(where, row, task)
    found = parse_conversation(where, row[task.messages], task.messages, row.get("tools"), task.system)
    return check_unanswered(where, found, task.messages)


def read_answer(where: str, row: dict[str, Any], column: str) -> Message:
    """An answer from a column: a text, a message, or a conversation whose last message is the answer.

    Raises: DataError: it is empty.
    """
    found = row[column]
    if not isinstance(found, str):
        return parse_conversation(where, found, column).messages[-1]
    if not found.strip():
        raise DataError(f"{where}: column {column} is empty; fill it or remove the row")
    return make_message(ASSISTANT, found)


def check_unanswered(where: str, found: Conversation, column: str) -> Conversation:
    """The conversation. Raises: DataError: it ends with an answer."""
    if found.messages[-1]["role"] == ASSISTANT:
        raise DataError(
            f"{where}: column {column} ends with an answer; it must end with what is answered: {ROW_ADVICE}"
        )
    return found


def encode_splits(
    train: list[Any],
    held_out: list[Any],
    task: TaskSpec,
    tokenizer: Any,
    encode: Callable[[Any, TaskSpec, Encoder], Any],
    *,
    tally: Tally,
) -> tuple[list[Any], list[Any]]:
    """Training and held-out rows as token ids, those that `kept` keeps. Raises: DataError: what is at fault with a row, named."""

    def each(examples: list[Any], which: str) -> list[Any]:
        rows = []
        for one in prefetch_examples(examples, encoder, task.loss_on):
            with prefix_errors(one.where):
                rows.append(encode(one, task, encoder))
        encoder.report_remarks(which)
        return drop_too_long(rows, lambda row: len(row.ids), task, which, tally)

    encoder = Encoder(tokenizer, task)
    return each(train, "training"), each(held_out, "held-out")


def prefetch_examples(examples: list[Any], encoder: Encoder, loss_on: str) -> Iterator[Any]:
    """Each example, when the encoder has read what it and many others are told by."""
    for part in batch_items(examples):
        told = [found for one in part for found in one.iter_renderings(loss_on)]
        encoder.read_ahead(told, [] if told else [one.completion for one in part])
        yield from part


def drop_too_long(rows: list[Any], length: Callable[[Any], int], task: TaskSpec, which: str, tally: Tally) -> list[Any]:
    """Those no longer than `task.max_length` tokens; how many are left out is said aloud.

    Raises: DataError: none is left.
    """
    found = [row for row in rows if length(row) <= task.max_length]
    if not found:
        shortest = min(map(length, rows))
        raise DataError(
            f"task.max_length={task.max_length}: every one of the {len(rows)} {which} rows is longer "
            f"(the shortest has {shortest} tokens); type task.max_length={2 ** max(shortest - 1, 1).bit_length()}"
        )
    if len(found) < len(rows):
        longer = [row for row in rows if length(row) > task.max_length]
        tally.left_out += [(row.where, f"longer than task.max_length={task.max_length}", length(row)) for row in longer]
        console.print_info(
            f"data: {len(longer)} of {len(rows)} {which} rows are longer than {task.max_length} tokens, left out"
        )
    return found
