"""A model's own chat template: conversations as text and as token ids, and what of a conversation it does not write."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError, UndefinedError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peftrun import console
from peftrun.errors import DataError
from peftrun.tasks.messages import ROW_ADVICE, Conversation, Message
from peftrun.tasks.token_ids import TokenIds

# What templates raise: on purpose, or because they expect a message to have another form.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
EXTRA_MESSAGE_KEYS = ("reasoning_content", "reasoning", "thinking", "name")


class ChatTemplate:
    """The template with the arguments that every rendering is given. `escaping`: special tokens in messages are read as plain text."""

    def __init__(self, tokenizer: Any, arguments: dict[str, Any]) -> None:
        self.tokenizer, self.arguments = tokenizer, arguments
        # A tokenizer of its own kind (Mistral's) makes ids of messages without a text between.
        self._in_two_steps = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        self._texts: dict[Any, str] = {}
        self._prefetched: list[tuple[Conversation, bool]] = []  # what is known by its identity must live
        self._ids = TokenIds(tokenizer, add_special_tokens=False)
        for name in arguments:
            if not re.search(rf"\b{re.escape(name)}\b", json.dumps(tokenizer.chat_template)):
                console.print_info(
                    f"task.template_arguments.{name}: the model's chat template reads no such name, so it changes nothing"
                )

    def read_ahead(self, conversations: list[tuple[Conversation, bool]]) -> None:
        """Renders these conversations, tokenizes them together, and forgets those before. What the template refuses it refuses again when it
        is asked for."""
        self._prefetched, self._texts = conversations, {}
        if not self._in_two_steps:
            return
        for conversation, opened in conversations:
            with suppress(DataError):
                self._texts[_build_cache_key(conversation, opened)] = self.text(conversation, opened)
        self._ids.read_ahead(self._texts.values())

    def ids(self, conversation: Conversation, opened: bool = False, *, escaping: bool = False) -> list[int]:
        """Token ids of a conversation; `opened`: up to where an answer begins. Raises: DataError: the template refuses it."""
        if self._in_two_steps and not escaping:
            return self._ids.of(self.text(conversation, opened))
        escape: dict[str, Any] = {"sanitize_control_tokens": True} if escaping else {}
        return list(
            self._apply_template(conversation, return_dict=True, add_generation_prompt=opened, **escape)["input_ids"]
        )

    def text(self, conversation: Conversation, opened: bool = False) -> str:
        """The same as text."""
        known = self._texts.get(_build_cache_key(conversation, opened))
        if known is not None:
            return known
        return str(self._apply_template(conversation, tokenize=False, add_generation_prompt=opened))

    def find_assistant_spans(self, conversation: Conversation) -> list[tuple[int, int]]:
        """The spans of its ids that the template itself marks as the assistant's; none where it marks nothing.

        Where a mark begins or ends with a character that no token holds, transformers' own mask ends too early, or not at all.
        """
        template = self.tokenizer.get_chat_template(tools=list(conversation.tools) or None)
        if not GENERATION_TAG.search(template) or not self.tokenizer.is_fast:
            return []
        (text,), (marks,) = self._apply_template(
            conversation, self._render_with_marks, chat_template=template, return_assistant_tokens_mask=True
        )
        inside = bytearray(len(text))
        for begin, end in marks:
            inside[begin:end] = b"1" * (end - begin)
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return find_spans([any(inside[begin:end]) for begin, end in places])

    def _render_with_marks(self, messages: list[dict[str, Any]], **given: Any) -> Any:
        """The text of a conversation in a list, and the marks in it."""
        return render_jinja_template([messages], **{**self.tokenizer.special_tokens_map, **given})

    def list_unwritten(self, conversation: Conversation) -> list[str]:
        """What the conversation says and the template does not write: tools, keys of messages. Raises: DataError: calls of tools are among it."""
        for place, one in enumerate(conversation.messages):
            if "tool_calls" in one and not self._writes_calls(conversation, place):
                raise DataError(
                    f"the model's chat template does not write tool_calls, so those of message {place + 1} would be lost; "
                    "choose a model whose template does, or remove the row"
                )
        found = [
            key
            for key in list_extra_keys(conversation)
            if self._renders_same(conversation, _drop_key(conversation, key))
        ]
        tools = conversation.tools and self._renders_same(conversation, Conversation(conversation.messages))
        return [*found, *(["tools"] if tools else [])]

    def _writes_calls(self, conversation: Conversation, place: int) -> bool:
        """Whether the rendering up to a message changes by its calls."""
        one = conversation.messages[place]
        plain = Message({"content": "", **{key: value for key, value in one.items() if key != "tool_calls"}})
        before = conversation.before(place)
        calling = before.followed_by(Message({**plain, "tool_calls": one["tool_calls"]}))
        return not self._renders_same(calling, before.followed_by(plain))

    def _renders_same(self, one: Conversation, other: Conversation) -> bool:
        try:
            return self.text(one) == self.text(other)
        except DataError:  # one of them is refused, so they do not mean the same to the template
            return False

    def _apply_template(self, conversation: Conversation, render: Callable[..., Any] | None = None, **how: Any) -> Any:
        given = {**self.arguments, "tools": [dict(one) for one in conversation.tools] or None, **how}
        messages = [dict(one) for one in conversation.messages]
        try:
            return self._render_tolerant(messages, given, render or self.tokenizer.apply_chat_template)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(one["role"] for one in messages)[:200]
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"the model's chat template refuses a conversation of {roles} ({reason}); {ROW_ADVICE}, or omit task.system"
            ) from error

    def _render_tolerant(
        self, messages: list[dict[str, Any]], given: dict[str, Any], render: Callable[..., Any]
    ) -> Any:
        """Templates expect calls of tools in one of three forms: without a content, with an empty one (all that read it first), and with
        arguments as JSON text (DeepSeek's)."""
        try:
            return render(messages, **given)
        except (UndefinedError, TypeError):
            if not any("tool_calls" in one for one in messages):
                raise
        with_content = [{"content": "", **one} for one in messages]
        try:
            return render(with_content, **given)
        except TypeError:
            return render([_serialize_arguments(one) for one in with_content], **given)


def _build_cache_key(conversation: Conversation, opened: bool) -> Any:
    """The tools by their identity: a list of them is one for many rows, and long."""
    return conversation.messages, id(conversation.tools), opened


def list_extra_keys(conversation: Conversation) -> list[str]:
    """What messages say beside their content, and a template may leave out."""
    return [key for key in EXTRA_MESSAGE_KEYS if any(key in one for one in conversation.messages)]


def find_spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, one after the last) of each run of ones."""
    edges = [place for place, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _drop_key(conversation: Conversation, key: str) -> Conversation:
    messages = (Message({name: value for name, value in one.items() if name != key}) for one in conversation.messages)
    return Conversation(tuple(messages), conversation.tools)


def _serialize_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {
            **one,
            "function": {**one["function"], "arguments": json.dumps(one["function"]["arguments"], ensure_ascii=False)},
        }
        for one in message.get("tool_calls", [])
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}
