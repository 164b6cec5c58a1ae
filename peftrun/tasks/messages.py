"""Conversations as data sets write them: messages in OpenAI's form (role, content) or ShareGPT's (from, value), each kept whole."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftrun.errors import DataError

ASSISTANT = "assistant"
# ShareGPT's names, and OpenAI's of before there were tools. A call of a function is the assistant's own, what comes back is not.
ROLES = {"human": "user", "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": "tool", "function": "tool"}
ROW_ADVICE = "fix or remove the row"


class Message(dict[str, Any]):
    """One message as a chat template reads it: role, content, and whatever else the row says. Never changed once it is made."""

    _hash: int | None = None

    def __hash__(self) -> int:  # type: ignore[override]
        if self._hash is None:  # asked for again and again, wherever rows are told apart
            self._hash = hash(json.dumps(self, sort_keys=True, default=str))
        return self._hash

    @property
    def text(self) -> str:
        """Its content; empty where it only calls tools."""
        return str(self.get("content", ""))

    @property
    def digest_value(self) -> Any:
        """Its text alone where that is all it says beside its role; for digests."""
        return self.text if self.keys() == {"role", "content"} else self


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that may be called in them. `unlearned`: places of messages whose row says that they carry no loss."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = field(default=(), compare=False)  # rows that differ in them alone are repeated rows
    unlearned: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.messages)

    def followed_by(self, *messages: Message) -> "Conversation":
        """The same with more messages at its end."""
        return Conversation((*self.messages, *messages), self.tools, self.unlearned)

    def before(self, place: int) -> "Conversation":
        """The messages before this place."""
        return Conversation(self.messages[:place], self.tools, tuple(one for one in self.unlearned if one < place))

    @property
    def answers(self) -> list[int]:
        """Places of the assistant's messages."""
        return [place for place, one in enumerate(self.messages) if one["role"] == ASSISTANT]

    @property
    def calls_tools(self) -> bool:
        """Whether a message calls a tool."""
        return any("tool_calls" in one for one in self.messages)

    def as_json(self) -> Any:
        """For digests: [role, content] of each message, whole where it says more; the tools behind them."""
        plain = [[one["role"], one.digest_value] for one in self.messages]
        more = {"tools": self.tools, "unlearned": self.unlearned}
        return [*plain, more] if self.tools or self.unlearned else plain


def make_message(role: str, text: str) -> Message:
    """A message of text alone."""
    return Message(role=role, content=text)


def build_system_messages(system: str | None) -> tuple[Message, ...]:
    """The system message that is put first, if there is one."""
    return (make_message("system", system),) if system else ()


def parse_conversation(
    where: str, found: Any, column: str, tools: Any = None, system: str | None = None
) -> Conversation:
    """The conversation that a column holds, after `system`. `tools`: what the row says of them.

    Raises: DataError: it is none, or a message cannot be read.
    """
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list | tuple) or not found or not all(is_message(one) for one in found):
        raise DataError(f"{where}: column {column} must hold [{{role, content}}, …]; {ROW_ADVICE}")
    messages, unlearned, first = [*build_system_messages(system)], [], bool(system)
    for place, one in enumerate(found):
        with prefix_errors(f"{where}: column {column}, message {place + 1}"):
            message, learned = parse_message(one)
            if not message.text.strip() and "tool_calls" not in message:
                raise DataError(f"is empty; {ROW_ADVICE}")
        messages.append(message)
        unlearned += [] if learned else [place + first]
    with prefix_errors(f"{where}: column tools"):
        return Conversation(tuple(messages), parse_tools(tools), tuple(unlearned))


def parse_message(one: dict[str, Any]) -> tuple[Message, bool]:
    """The message as templates take it, and whether it is to be learned where answers are. Raises: DataError: it cannot be read."""
    found = {key: value for key, value in one.items() if value is not None}
    names = ("from", "value") if "from" in found else ("role", "content")
    role, content = (found.pop(name, None) for name in names)
    learned, calls = _pop_loss_flag(found), _pop_tool_calls(found)
    text = _join_content(content)
    own = {"content": text} if text.strip() or not calls else {}
    return Message(
        role=ROLES.get(str(role), str(role)), **own, **({"tool_calls": calls} if calls else {}), **found
    ), learned


def is_message(found: Any) -> bool:
    """Whether this has the form of a message."""
    return isinstance(found, dict) and ({"role", "content"} <= found.keys() or {"from", "value"} <= found.keys() or (
        "role" in found and ("tool_calls" in found or "function_call" in found)
    ))  # fmt: skip


def are_messages(found: Any) -> bool:
    """Whether this is a conversation, or one message of it."""
    return is_message(found) or (isinstance(found, list) and bool(found) and all(map(is_message, found)))


def parse_tools(found: Any) -> tuple[Message, ...]:
    """Tools as transformers takes them, from a list of their JSON schemas or its text. Raises: DataError: it is none."""
    if isinstance(found, str):
        found = _parse_json(found, "is not JSON") if found.strip() else []
    if not found:
        return ()
    if not isinstance(found, list | tuple) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"must hold a list of tools, each an object with the JSON schema of a function; {ROW_ADVICE}")
    return tuple(Message(one if "function" in one else {"type": "function", "function": one}) for one in found)


def load_tools(path: str | None) -> tuple[Message, ...]:
    """The tools in a JSON file. Raises: DataError: it holds none."""
    if path is None:
        return ()
    try:
        with prefix_errors(f"task.tools={path}"):
            return parse_tools(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"task.tools={path}: cannot be read ({error}); name a JSON file") from error


@contextmanager
def prefix_errors(where: str) -> Iterator[None]:
    """Puts the row in front of what is found at fault in it."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{where}: {line}" for line in error.lines)) from error


def _join_content(content: Any) -> str:
    """A content as one text: parts are joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise DataError(
            f"its content is {_describe_type(content)}; it must be a text, or a list of parts of type text: {ROW_ADVICE}"
        )
    parts = [one if isinstance(one, dict) else {"type": _describe_type(one)} for one in content]
    other = next((one for one in parts if one.get("type") != "text" or not isinstance(one.get("text"), str)), None)
    if other is not None:
        raise DataError(f"its content has a part of type {other.get('type')}, and only text is read; {ROW_ADVICE}")
    return "".join(one["text"] for one in parts)


def _pop_tool_calls(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Calls as transformers' templates take them, arguments as objects; taken out of `found`."""
    calls = found.pop("tool_calls", None) or []
    if isinstance(found.get("function_call"), dict):
        calls = [found.pop("function_call")]
    if not isinstance(calls, list | tuple):
        raise DataError(f"its tool_calls are {_describe_type(calls)}; they must be a list of calls: {ROW_ADVICE}")
    return [_parse_tool_call(one) for one in calls]


def _parse_tool_call(one: Any) -> dict[str, Any]:
    whole = one if isinstance(one, dict) and "function" in one else {"type": "function", "function": one}
    function = whole["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"a call in its tool_calls names no function; {ROW_ADVICE}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parse_json(arguments or "{}", f"the arguments of its call of {function['name']} are not JSON")
    return {**whole, "function": {**function, "arguments": arguments}}


def _pop_loss_flag(found: dict[str, Any]) -> bool:
    """What `weight` (OpenAI's) and `train` say; taken out of `found`, for a template knows nothing of them."""
    weight, train = found.pop("weight", 1), found.pop("train", True)
    if weight not in (0, 1) or not isinstance(train, bool):
        raise DataError(f"its weight must be 0 or 1, its train true or false; {ROW_ADVICE}")
    return bool(weight) and train


def _parse_json(text: str, fault: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{fault} ({error}); {ROW_ADVICE}") from error


def _describe_type(value: Any) -> str:
    kinds: Sequence[tuple[Any, str]] = (
        (bool, "a truth value"),
        (int | float, "a number"),
        (dict, "an object"),
        (list, "a list"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a text")
