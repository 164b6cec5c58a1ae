"""Conversations in the formats of datasets: messages in OpenAI's form (role, content) or ShareGPT's (from, value), with all their keys."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peftrun.artifacts import remote_files
from peftrun.errors import DataError

ASSISTANT = "assistant"
# ShareGPT's roles, and OpenAI's `function` from before tools. A function call is the assistant's, its result is the tool's.
ROLES = {"human": "user", "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": "tool", "function": "tool"}
ROW_ADVICE = "fix or remove the row"


class Message(dict[str, Any]):
    """One message as a chat template reads it: role, content, and any other key of the row. Immutable by convention."""

    _hash: int | None = None

    def __hash__(self) -> int:  # type: ignore[override]
        if self._hash is None:  # cached: deduplication and the template cache hash each message many times
            self._hash = hash(json.dumps(self, sort_keys=True, default=str))
        return self._hash

    @property
    def text(self) -> str:
        """Its content; empty if it only calls tools."""
        return str(self.get("content", ""))

    @property
    def digest_value(self) -> Any:
        """For digests: its text alone if it has only role and content."""
        return self.text if self.keys() == {"role", "content"} else self


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that they may call. `unlearned`: indices of messages that the row excludes from the loss."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = field(default=(), compare=False)  # rows that differ only in tools count as repeated
    unlearned: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.messages)

    def followed_by(self, *messages: Message) -> "Conversation":
        """The conversation with more messages at its end."""
        return Conversation((*self.messages, *messages), self.tools, self.unlearned)

    def before(self, end: int) -> "Conversation":
        """The messages before index `end`."""
        return Conversation(self.messages[:end], self.tools, tuple(index for index in self.unlearned if index < end))

    def without_key(self, key: str) -> "Conversation":
        """The conversation with `key` removed from each message."""
        messages = (Message({k: value for k, value in message.items() if k != key}) for message in self.messages)
        return Conversation(tuple(messages), self.tools)

    @property
    def answers(self) -> list[int]:
        """Indices of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == ASSISTANT]

    @property
    def calls_tools(self) -> bool:
        """Whether a message calls a tool."""
        return any("tool_calls" in message for message in self.messages)

    def as_json(self) -> Any:
        """For digests: [role, content] of each message (the whole message if it has other keys), then tools and `unlearned`."""
        pairs = [[message["role"], message.digest_value] for message in self.messages]
        extras = {"tools": self.tools, "unlearned": self.unlearned}
        return [*pairs, extras] if self.tools or self.unlearned else pairs


def make_message(role: str, text: str) -> Message:
    """A message that is only text."""
    return Message(role=role, content=text)


def build_system_messages(system: str | None) -> tuple[Message, ...]:
    """The system message, if there is one."""
    return (make_message("system", system),) if system else ()


def parse_conversation(
    where: str, value: Any, column: str, tools: Any = None, system: str | None = None
) -> Conversation:
    """The conversation in a column, with `system` before it. `tools`: the row's column of that name.

    Raises: DataError: the value is no conversation, or a message cannot be read.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple) or not value or not all(map(is_message, value)):
        raise DataError(f"{where}: column {column} must hold [{{role, content}}, …]; {ROW_ADVICE}")
    messages, unlearned, offset = [*build_system_messages(system)], [], bool(system)
    for index, item in enumerate(value):
        with prefix_errors(f"{where}: column {column}, message {index + 1}"):
            message, learned = parse_message(item)
            if not message.text.strip() and "tool_calls" not in message:
                raise DataError(f"is empty; {ROW_ADVICE}")
        messages.append(message)
        unlearned += [] if learned else [index + offset]
    with prefix_errors(f"{where}: column tools"):
        return Conversation(tuple(messages), parse_tools(tools), tuple(unlearned))


def parse_message(message: dict[str, Any]) -> tuple[Message, bool]:
    """The message as chat templates read it, and whether an answer carries loss. Raises: DataError: it cannot be read."""
    # Parquet gives every row the keys of all rows, null where a message has none.
    fields = {key: value for key, value in message.items() if value is not None}
    names = ("from", "value") if "from" in fields else ("role", "content")
    role, content = (fields.pop(name, None) for name in names)
    # OpenAI's `weight`, and `train`. Both are removed, since they are no part of the message for a template.
    weight, train = fields.pop("weight", 1), fields.pop("train", True)
    if weight not in (0, 1) or not isinstance(train, bool):
        raise DataError(f"its weight must be 0 or 1, its train true or false; {ROW_ADVICE}")
    values = fields.pop("tool_calls", None) or []
    if isinstance(fields.get("function_call"), dict):  # OpenAI's older form: a single call
        values = [fields.pop("function_call")]
    if not isinstance(values, list | tuple):
        raise DataError(f"its tool_calls are {_describe_type(values)}; they must be a list of calls: {ROW_ADVICE}")
    calls, text = [_parse_tool_call(value) for value in values], _join_content(content)
    body = ({"content": text} if text.strip() or not calls else {}) | ({"tool_calls": calls} if calls else {})
    return Message(role=ROLES.get(str(role), str(role)), **body, **fields), bool(weight) and train


def is_message(value: Any) -> bool:
    """Whether a value has the form of a message."""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys() or (
        "role" in value and ("tool_calls" in value or "function_call" in value)
    ))  # fmt: skip


def are_messages(value: Any) -> bool:
    """Whether a value is a conversation or a single message."""
    return is_message(value) or (isinstance(value, list) and bool(value) and all(map(is_message, value)))


def parse_tools(value: Any) -> tuple[Message, ...]:
    """Tools in transformers' form, from a list of JSON schemas or JSON text of one. Raises: DataError: it is none."""
    if isinstance(value, str):
        value = _parse_json(value, "is not JSON") if value.strip() else []
    if not value:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"must hold a list of tools, each an object with the JSON schema of a function; {ROW_ADVICE}")
    return tuple(Message(tool if "function" in tool else {"type": "function", "function": tool}) for tool in value)


def load_tools(path: str | None) -> tuple[Message, ...]:
    """The tools in a JSON file; empty without a path. Raises: DataError: it cannot be read, or holds no tools."""
    if path is None:
        return ()
    try:
        with prefix_errors(f"task.tools={path}"):
            return parse_tools(remote_files.locate_file(path, f"task.tools={path}").read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"task.tools={path}: cannot be read ({error}); name a JSON file") from error


@contextmanager
def prefix_errors(where: str) -> Iterator[None]:
    """Prefixes each line of a DataError with the location of the row."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{where}: {line}" for line in error.lines)) from error


def _join_content(content: Any) -> str:
    """A content as one text; parts of type text are joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise DataError(
            f"its content is {_describe_type(content)}; it must be a text, or a list of parts of type text: {ROW_ADVICE}"
        )
    parts = [part if isinstance(part, dict) else {"type": _describe_type(part)} for part in content]
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"its content has a part of type {part.get('type')}, and only text is read; {ROW_ADVICE}")
    return "".join(part["text"] for part in parts)


def _parse_tool_call(value: Any) -> dict[str, Any]:
    """A call in transformers' form, with its arguments as an object."""
    call = value if isinstance(value, dict) and "function" in value else {"type": "function", "function": value}
    function = call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"a call in its tool_calls names no function; {ROW_ADVICE}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parse_json(arguments or "{}", f"the arguments of its call of {function['name']} are not JSON")
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_json(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{problem} ({error}); {ROW_ADVICE}") from error


def _describe_type(value: Any) -> str:
    names: Sequence[tuple[Any, str]] = (
        (bool, "a truth value"),  # before int, which it is a subclass of
        (int | float, "a number"),
        (dict, "an object"),
        (list, "a list"),
    )
    return next((name for type_, name in names if isinstance(value, type_)), "a text")
