"""Tool calls in an answer, parsed by transformers where it knows the format in which the model writes them."""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from transformers.cli.serving.utils import get_response_template

# The tokens of an answer → fields of an OpenAI message instead of its text: content, tool_calls; None: it has no calls.
ToolParser = Callable[[Sequence[int]], dict[str, Any] | None]


def build_tool_parser(
    tokenizer: Any, model: Any, prompt: list[int], tools: Sequence[dict[str, Any]]
) -> ToolParser | None:
    """The parser of answers to a prompt with tools; None: neither the tokenizer nor transformers has a `response_template`."""
    template = get_response_template(tokenizer, model)
    if template is None:
        return None

    def parse_answer(ids: Sequence[int]) -> dict[str, Any] | None:
        context = {"prefix": tokenizer.decode(prompt), "tools": [dict(tool) for tool in tools]}
        try:
            message = tokenizer.parse_response(tokenizer.decode(list(ids)), template, **context)
            calls = [_format_call(call) for call in message.get("tool_calls") or []]
        except (ValueError, TypeError, KeyError):  # a malformed call: the text is returned as it was generated
            return None
        if not calls:
            return None
        content = str(message.get("content") or "").removesuffix(tokenizer.eos_token or "").strip()
        # Models name their reasoning differently; clients know the first name.
        reasoning = next((message[key] for key in ("reasoning_content", "thinking") if message.get(key)), None)
        fields = {"reasoning_content": reasoning} if reasoning else {}
        return {"content": content or None, **fields, "tool_calls": calls}

    return parse_answer


def _format_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's format: with an id, and its arguments as JSON text. Raises: TypeError, KeyError: it is malformed."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and arguments")
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": text}}
