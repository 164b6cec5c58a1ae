"""Talks as data sets write them: messages in OpenAI's form (role, content) or ShareGPT's (from, value)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peftrun.errors import DataError

Talk = tuple[tuple[str, str], ...]  # (role, content)
ASSISTANT = "assistant"
# ShareGPT's names. A call of a function is the assistant's own, what comes back is not.
ROLES = {"human": "user", "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": "tool"}


def messages_of(where: str, found: Any, column: str) -> Talk:
    """(role, content) of each message of a talk.

    Raises: DataError: it is none, or a message is empty.
    """
    try:
        talk = tuple(_message(one) for one in found)
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: column {column} must hold [{{role, content}}, …]; mend or remove the row") from error
    if not talk or not all(content.strip() for _, content in talk):
        raise DataError(f"{where}: column {column} holds an empty message; mend or remove the row")
    return talk


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts the row in front of what is found at fault in it."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{where}: {line}" for line in error.lines)) from error


def _message(one: Any) -> tuple[str, str]:
    role, content = (one["from"], one["value"]) if "from" in one else (one["role"], one["content"])
    return ROLES.get(str(role), str(role)), str(content)
