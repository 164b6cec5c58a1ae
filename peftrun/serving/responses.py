"""Answers in the formats of OpenAI's API: whole, or in chunks of a stream."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftrun.serving.request_state import OutputChunk
from peftrun.serving.sampling import SampledToken
from peftrun.serving.tool_calls import ToolParser

DONE_EVENT = "data: [DONE]\n\n"


@dataclass
class Usage:
    """Tokens of the prompts, each counted once however many answers it gets, and of the answers."""

    prompt: int
    written: int = 0

    def as_dict(self) -> dict[str, int]:
        """In OpenAI's format."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
        }


@dataclass
class ChatFormat:
    """The format of /v1/chat/completions.

    Attributes: calls: parses tool calls from a complete answer; a streamed answer is then held back until it is complete.
    """

    calls: ToolParser | None = None
    _pending: dict[int, str] = field(default_factory=dict)  # index of an answer → its text so far

    endpoint: ClassVar = "chat/completions"
    object_name: ClassVar = "chat.completion"
    chunk_object_name: ClassVar = "chat.completion.chunk"
    prefix: ClassVar = "chatcmpl-"

    def build_first_delta(self, index: int) -> dict[str, Any] | None:
        """The choice that comes before the first text of an answer."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def build_choice(self, chunk: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """A complete answer."""
        fields, finish = self._parse_answer(chunk, chunk.text)
        message = {"role": "assistant", "refusal": None, **fields}
        return {"index": chunk.index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def build_delta(self, chunk: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """What a chunk adds to an answer."""
        delta: dict[str, Any] = {}
        finish = chunk.finish
        if self.calls is None:
            if chunk.text or not chunk.finish:
                delta = {"content": chunk.text}
        else:
            self._pending[chunk.index] = self._pending.get(chunk.index, "") + chunk.text
            if chunk.finish:
                delta, finish = self._parse_answer(chunk, self._pending.pop(chunk.index))
                if "tool_calls" in delta:
                    calls = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
                    delta = delta | {"tool_calls": calls}
        return {"index": chunk.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _parse_answer(self, chunk: OutputChunk, text: str) -> tuple[dict[str, Any], str | None]:
        """The fields of a complete answer's message, and the finish reason."""
        fields = self.calls(chunk.ids) if self.calls and chunk.ids else None
        if fields is None:
            return {"content": text}, chunk.finish
        return fields, "tool_calls" if chunk.finish == "stop" else chunk.finish

    def format_logprobs(self, sampled: Sequence[SampledToken], tokenizer: Any, offset: int) -> dict[str, Any]:
        """Log probabilities of tokens and their alternatives."""
        content = [
            _format_token(token.token, token.logprob, tokenizer)
            | {"top_logprobs": [_format_token(other, logprob, tokenizer) for other, logprob in token.others]}
            for token in sampled
        ]
        return {"content": content, "refusal": None}


class CompletionFormat:
    """The format of /v1/completions."""

    endpoint, object_name, chunk_object_name, prefix = "completions", "text_completion", "text_completion", "cmpl-"

    def build_first_delta(self, index: int) -> dict[str, Any] | None:
        """None: nothing comes before the first text of an answer."""
        return None

    def build_choice(self, chunk: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """A complete answer."""
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish}

    build_delta = build_choice

    def format_logprobs(self, sampled: Sequence[SampledToken], tokenizer: Any, offset: int) -> dict[str, Any]:
        """Log probabilities of tokens and their alternatives. Args: offset: characters of the answer before these tokens."""
        texts = [_decode_token(token.token, tokenizer) for token in sampled]
        return {
            "text_offset": [offset + sum(map(len, texts[:index])) for index in range(len(texts))],
            "token_logprobs": [token.logprob for token in sampled],
            "tokens": texts,
            "top_logprobs": [
                {_decode_token(other, tokenizer): logprob for other, logprob in token.others} for token in sampled
            ],
        }


@dataclass
class ResponseBuilder:
    """Builds the response to one request, whole or in chunks, all with the same id."""

    form: ChatFormat | CompletionFormat
    model: str
    usage: Usage
    tokenizer: Any
    wants_logprobs: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))  # Unix time, seconds
    _offsets: dict[int, int] = field(default_factory=dict)  # index of an answer → its characters so far

    def build_full(self, chunks: dict[int, OutputChunk]) -> dict[str, Any]:
        """The whole response. Args: chunks: index → complete answer."""
        choices = [
            self.form.build_choice(chunks[index], self._format_logprobs(chunks[index])) for index in sorted(chunks)
        ]
        return self._build_envelope(self.form.object_name, choices) | {"usage": self.usage.as_dict()}

    def build_first_chunks(self, rows: int) -> list[dict[str, Any]]:
        """The events before the first text. Args: rows: the number of answers."""
        deltas = [self.form.build_first_delta(index) for index in range(rows)]
        return [self._build_envelope(self.form.chunk_object_name, [delta]) for delta in deltas if delta]

    def build_chunk(self, chunk: OutputChunk) -> dict[str, Any]:
        """The event of one chunk."""
        delta = self.form.build_delta(chunk, self._format_logprobs(chunk))
        return self._build_envelope(self.form.chunk_object_name, [delta])

    def build_last_chunk(self) -> dict[str, Any]:
        """The event after the last chunk, with the usage."""
        return self._build_envelope(self.form.chunk_object_name, []) | {"usage": self.usage.as_dict()}

    def _build_envelope(self, object_name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.form.prefix}{self.id}",
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _format_logprobs(self, chunk: OutputChunk) -> dict[str, Any] | None:
        offset = self._offsets.get(chunk.index, 0)
        self._offsets[chunk.index] = offset + len(chunk.text)
        return self.form.format_logprobs(chunk.logprobs, self.tokenizer, offset) if self.wants_logprobs else None


def format_event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def build_model_card(name: str, created: int, root: str, parent: str | None) -> dict[str, Any]:
    """One entry of /v1/models; `root` (where it was loaded from) and `parent` (its base model) as in vLLM."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "peftrun",
        "root": root,
        "parent": parent,
    }


def _format_token(token: int, logprob: float, tokenizer: Any) -> dict[str, Any]:
    text = _decode_token(token, tokenizer)
    # A token that is part of a character decodes to U+FFFD, whose bytes are not the token's.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _decode_token(token: int, tokenizer: Any) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
