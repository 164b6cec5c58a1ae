"""Answers as OpenAI's API writes them: whole, or in chunks."""

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
    """Tokens read and written; of several answers to one prompt it is read once."""

    prompt: int
    written: int = 0

    def as_dict(self) -> dict[str, int]:
        """As OpenAI's API tells it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
        }


@dataclass
class ChatFormat:
    """The form of /v1/chat/completions. `calls`: reads calls of tools out of an answer that has ended; until then nothing of it is told."""

    calls: ToolParser | None = None
    _pending: dict[int, str] = field(default_factory=dict)

    endpoint: ClassVar = "chat/completions"
    object_name: ClassVar = "chat.completion"
    chunk_object_name: ClassVar = "chat.completion.chunk"
    prefix: ClassVar = "chatcmpl-"

    def build_first_delta(self, index: int) -> dict[str, Any] | None:
        """What comes before an answer's first piece."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def build_choice(self, piece: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """A whole answer."""
        said, finish = self._parse_answer(piece, piece.text)
        message = {"role": "assistant", "refusal": None, **said}
        return {"index": piece.index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def build_delta(self, piece: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """What has been added to an answer."""
        added, finish = self._build_delta(piece)
        return {"index": piece.index, "delta": added, "logprobs": logprobs, "finish_reason": finish}

    def _build_delta(self, piece: OutputChunk) -> tuple[dict[str, Any], str | None]:
        if self.calls is None:
            return {"content": piece.text} if piece.text or not piece.finish else {}, piece.finish
        self._pending[piece.index] = self._pending.get(piece.index, "") + piece.text
        if not piece.finish:
            return {}, None
        said, finish = self._parse_answer(piece, self._pending.pop(piece.index))
        numbered = [{"index": place, **one} for place, one in enumerate(said.get("tool_calls", []))]
        return said | ({"tool_calls": numbered} if numbered else {}), finish

    def _parse_answer(self, piece: OutputChunk, text: str) -> tuple[dict[str, Any], str | None]:
        """What an answer that has ended says, and why it ended."""
        found = self.calls(piece.ids) if self.calls and piece.ids else None
        if found is None:
            return {"content": text}, piece.finish
        return found, "tool_calls" if piece.finish == "stop" else piece.finish

    def format_logprobs(self, found: Sequence[SampledToken], tokenizer: Any, offset: int) -> dict[str, Any]:
        """Of each token, with its rivals."""
        return {"content": [_format_chat_token(one, tokenizer) for one in found], "refusal": None}


class CompletionFormat:
    """The form of /v1/completions."""

    endpoint, object_name, chunk_object_name, prefix = "completions", "text_completion", "text_completion", "cmpl-"

    def build_first_delta(self, index: int) -> dict[str, Any] | None:
        """Nothing comes before an answer's first piece."""
        return None

    def build_choice(self, piece: OutputChunk, logprobs: Any) -> dict[str, Any]:
        """A whole answer."""
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    build_delta = build_choice

    def format_logprobs(self, found: Sequence[SampledToken], tokenizer: Any, offset: int) -> dict[str, Any]:
        """Of each token, with its rivals."""
        tokens = [_decode_token(one.token, tokenizer) for one in found]
        places = [offset + sum(map(len, tokens[:place])) for place in range(len(tokens))]
        return {
            "text_offset": places,
            "token_logprobs": [one.logprob for one in found],
            "tokens": tokens,
            "top_logprobs": [{_decode_token(token, tokenizer): value for token, value in one.others} for one in found],
        }


@dataclass
class ResponseBuilder:
    """One reply: its id, whom it is from, and how it is written."""

    form: ChatFormat | CompletionFormat
    model: str
    usage: Usage
    tokenizer: Any
    wants_logprobs: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=dict)

    def build_full(self, pieces: dict[int, OutputChunk]) -> dict[str, Any]:
        """The reply at once."""
        choices = [
            self.form.build_choice(pieces[index], self._format_logprobs(pieces[index])) for index in sorted(pieces)
        ]
        return self._build_envelope(self.form.object_name, choices) | {"usage": self.usage.as_dict()}

    def build_first_chunks(self, rows: int) -> list[dict[str, Any]]:
        """Chunks before the first pieces."""
        found = [self.form.build_first_delta(index) for index in range(rows)]
        return [self._build_envelope(self.form.chunk_object_name, [one]) for one in found if one]

    def build_chunk(self, piece: OutputChunk) -> dict[str, Any]:
        """What has been added to one answer."""
        return self._build_envelope(
            self.form.chunk_object_name, [self.form.build_delta(piece, self._format_logprobs(piece))]
        )

    def build_last_chunk(self) -> dict[str, Any]:
        """The chunk after the last piece, with the usage."""
        return self._build_envelope(self.form.chunk_object_name, []) | {"usage": self.usage.as_dict()}

    def _build_envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.form.prefix}{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _format_logprobs(self, piece: OutputChunk) -> dict[str, Any] | None:
        offset = self._offsets.get(piece.index, 0)
        self._offsets[piece.index] = offset + len(piece.text)
        return self.form.format_logprobs(piece.logprobs, self.tokenizer, offset) if self.wants_logprobs else None


def format_event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def build_model_card(name: str, created: int, root: str, parent: str | None) -> dict[str, Any]:
    """One of /v1/models; `root` and `parent` as vLLM tells them."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "peftrun",
        "root": root,
        "parent": parent,
    }


def _format_chat_token(one: SampledToken, tokenizer: Any) -> dict[str, Any]:
    others = [_format_token(token, value, tokenizer) for token, value in one.others]
    return _format_token(one.token, one.logprob, tokenizer) | {"top_logprobs": others}


def _format_token(token: int, logprob: float, tokenizer: Any) -> dict[str, Any]:
    """Bytes only where the token is text by itself: a part of a character has none that can be told."""
    word = _decode_token(token, tokenizer)
    return {"token": word, "logprob": logprob, "bytes": None if "\ufffd" in word else list(word.encode())}


def _decode_token(token: int, tokenizer: Any) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
