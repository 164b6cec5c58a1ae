"""Calls of tools in an answer, read by transformers' own parser where it knows the form that the model writes them in."""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from transformers.cli.serving.utils import get_response_template

# An answer's tokens → what an OpenAI message says in place of its text: content, tool_calls; None where the text stays as it is.
ToolParser = Callable[[Sequence[int]], dict[str, Any] | None]


def build_tool_parser(
    tokenizer: Any, model: Any, prompt: list[int], tools: Sequence[dict[str, Any]]
) -> ToolParser | None:
    """How answers to a prompt that tells of tools are read; None: the tokenizer has no `response_template`, and transformers none for the model."""
    template = get_response_template(tokenizer, model)
    if template is None:
        return None

    def parse_answer(ids: Sequence[int]) -> dict[str, Any] | None:
        given = {"prefix": tokenizer.decode(prompt), "tools": [dict(one) for one in tools]}
        try:
            found = tokenizer.parse_response(tokenizer.decode(list(ids)), template, **given)
            calls = [_format_call(one) for one in found.get("tool_calls") or []]
        except (ValueError, TypeError, KeyError):  # a call that is none: what was written is told as it is
            return None
        return _build_message(found, calls, tokenizer.eos_token) if calls else None

    return parse_answer


def _build_message(found: dict[str, Any], calls: list[dict[str, Any]], end: str | None) -> dict[str, Any]:
    content = str(found.get("content") or "").removesuffix(end or "").strip()
    reasoning = next((found[key] for key in ("reasoning_content", "thinking") if found.get(key)), None)
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return {"content": content or None, **thought, "tool_calls": calls}


def _format_call(one: dict[str, Any]) -> dict[str, Any]:
    """A call as OpenAI's API writes it: with an id, its arguments as JSON text."""
    name, arguments = one["function"]["name"], one["function"]["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and arguments")
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": text}}
