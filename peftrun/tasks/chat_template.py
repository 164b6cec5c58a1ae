"""A model's chat template: conversations as text and as token ids, and which parts of a conversation it leaves out."""

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

# What templates raise: on purpose (`raise_exception`), or because they expect messages in another form.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
EXTRA_MESSAGE_KEYS = ("reasoning_content", "reasoning", "thinking", "name")


class ChatTemplate:
    """Renders conversations with the template and fixed arguments."""

    def __init__(self, tokenizer: Any, arguments: dict[str, Any]) -> None:
        self.tokenizer, self.arguments = tokenizer, arguments
        # Mistral's own tokenizer encodes messages directly, without rendering a text first.
        self._renders_text = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        self._texts: dict[Any, str] = {}
        self._prefetched: list[tuple[Conversation, bool]] = []  # keeps the tools alive: their id() is part of the key
        self._ids = TokenIds(tokenizer, add_special_tokens=False)  # the template writes them itself
        for name in arguments:
            if not re.search(rf"\b{re.escape(name)}\b", json.dumps(tokenizer.chat_template)):
                console.print_info(
                    f"task.template_arguments.{name}: the model's chat template does not use this name, so it changes nothing"
                )

    def read_ahead(self, conversations: list[tuple[Conversation, bool]]) -> None:
        """Renders and tokenizes these conversations in one batch, in place of the earlier ones."""
        self._prefetched, self._texts = conversations, {}
        if not self._renders_text:
            return
        for conversation, opened in conversations:
            with suppress(DataError):  # raised again, with the row's location, when the row is encoded
                self._texts[_build_cache_key(conversation, opened)] = self.text(conversation, opened)
        self._ids.read_ahead(self._texts.values())

    def ids(self, conversation: Conversation, opened: bool = False, *, escaping: bool = False) -> list[int]:
        """Token ids of a conversation.

        Args: opened: with the generation prompt. escaping: special tokens inside messages are read as plain text.
        Raises: DataError: the template refuses the conversation.
        """
        if self._renders_text and not escaping:
            return self._ids.of(self.text(conversation, opened))
        escape: dict[str, Any] = {"sanitize_control_tokens": True} if escaping else {}
        return list(
            self._apply_template(conversation, return_dict=True, add_generation_prompt=opened, **escape)["input_ids"]
        )

    def text(self, conversation: Conversation, opened: bool = False) -> str:
        """The rendering as text; arguments as for `ids`."""
        cached = self._texts.get(_build_cache_key(conversation, opened))
        if cached is not None:
            return cached
        return str(self._apply_template(conversation, tokenize=False, add_generation_prompt=opened))

    def find_assistant_spans(self, conversation: Conversation) -> list[tuple[int, int]]:
        """Spans of the conversation's ids that the template marks with `{% generation %}`; empty if it marks nothing."""
        template = self.tokenizer.get_chat_template(tools=list(conversation.tools) or None)
        if not GENERATION_TAG.search(template) or not self.tokenizer.is_fast:
            return []

        def render_with_marks(messages: list[dict[str, Any]], **options: Any) -> Any:
            return render_jinja_template([messages], **{**self.tokenizer.special_tokens_map, **options})

        (text,), (marks,) = self._apply_template(
            conversation, render_with_marks, chat_template=template, return_assistant_tokens_mask=True
        )
        # transformers' own mask looks up the token of a mark's first and last character. It ends too early, or not
        # at all, where no token covers that character, so the mask is made here, per character: (characters,).
        inside = bytearray(len(text))
        for begin, end in marks:
            inside[begin:end] = b"1" * (end - begin)
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return find_spans([any(inside[begin:end]) for begin, end in offsets])

    def list_unwritten(self, conversation: Conversation) -> list[str]:
        """What the template leaves out of the conversation: "tools", keys of messages. Raises: DataError: it leaves out tool calls."""
        for index, message in enumerate(conversation.messages):
            if "tool_calls" not in message:
                continue
            # A template that writes them renders the conversation up to here differently once they are removed.
            plain = Message({"content": "", **{key: value for key, value in message.items() if key != "tool_calls"}})
            before = conversation.before(index)
            calling = before.followed_by(Message({**plain, "tool_calls": message["tool_calls"]}))
            if self._renders_same(calling, before.followed_by(plain)):
                raise DataError(
                    f"the model's chat template does not write tool_calls, so those of message {index + 1} would be lost; "
                    "choose a model whose template does, or remove the row"
                )
        unwritten = [
            key
            for key in list_extra_keys(conversation)
            if self._renders_same(conversation, conversation.without_key(key))
        ]
        tools = conversation.tools and self._renders_same(conversation, Conversation(conversation.messages))
        return [*unwritten, *(["tools"] if tools else [])]

    def _renders_same(self, first: Conversation, second: Conversation) -> bool:
        try:
            return self.text(first) == self.text(second)
        except DataError:  # the template refuses one of them, so it does tell them apart
            return False

    def _apply_template(
        self, conversation: Conversation, render: Callable[..., Any] | None = None, **options: Any
    ) -> Any:
        options = {**self.arguments, "tools": [dict(tool) for tool in conversation.tools] or None, **options}
        messages = [dict(message) for message in conversation.messages]
        try:
            return _render_tolerant(messages, options, render or self.tokenizer.apply_chat_template)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)[:200]
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"the model's chat template refuses a conversation of {roles} ({reason}); {ROW_ADVICE}, or omit task.system_prompt"
            ) from error


def _render_tolerant(messages: list[dict[str, Any]], options: dict[str, Any], render: Callable[..., Any]) -> Any:
    """Renders tool calls in the form that the template expects; the three forms are tried in turn."""
    try:
        return render(messages, **options)  # a message with calls may have no content
    except (UndefinedError, TypeError):
        if not any("tool_calls" in message for message in messages):
            raise
    messages = [{"content": "", **message} for message in messages]  # for templates that test the content first
    try:
        return render(messages, **options)
    except TypeError:  # DeepSeek's concatenates the arguments, so they must be JSON text
        return render([_serialize_arguments(message) for message in messages], **options)


def _build_cache_key(conversation: Conversation, opened: bool) -> Any:
    # Tools by identity: many rows share one tuple of them, and hashing it for each row is slow.
    return conversation.messages, id(conversation.tools), opened


def list_extra_keys(conversation: Conversation) -> list[str]:
    """Keys of messages, besides role and content, that a template may leave out."""
    return [key for key in EXTRA_MESSAGE_KEYS if any(key in message for message in conversation.messages)]


def find_spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, one after the last) of each run of true values."""
    edges = [index for index, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _serialize_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message.get("tool_calls", []):
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, **({"tool_calls": calls} if calls else {})}
