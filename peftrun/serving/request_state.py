"""A request on its way through the engine, and what its handler is given meanwhile."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.serving import sampling
from peftrun.serving.adapter_registry import AdapterVersion
from peftrun.serving.detokenizer import StreamDetokenizer
from peftrun.serving.sampling import SampledToken, SamplingParams


@dataclass
class OutputChunk:
    """What has been added to answer number `index`.

    Attributes:
        finish: why it ended; None: it goes on.
        ids: all its tokens, once it has ended otherwise than at a stop string.
    """

    index: int
    text: str = ""
    tokens: int = 0
    logprobs: list[SampledToken] = field(default_factory=list)
    finish: str | None = None
    ids: list[int] | None = None

    def merge_with(self, more: "OutputChunk") -> "OutputChunk":
        """Both, as one."""
        logprobs = self.logprobs + more.logprobs
        return OutputChunk(
            self.index, self.text + more.text, self.tokens + more.tokens, logprobs, more.finish, more.ids
        )


class RequestHandle:
    """One request. The engine's thread hands pieces over through `hand`; a reader who is slow finds them grown together, so that no more waits
    for it than its answers' own text.
    """

    def __init__(self, version: AdapterVersion, prompts: Sequence[list[int]], rows: int) -> None:
        self.version, self.prompts, self.rows = version, prompts, rows
        self.arrived, self.first_token = time.monotonic(), 0.0
        self.cancelled = False  # read by the engine
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._pieces: dict[int, OutputChunk] = {}
        self._fault: Exception | None = None
        self._ended = 0

    def add_chunks(self, pieces: list[OutputChunk], fault: Exception | None = None) -> None:
        """Called in the event loop: what the engine has for this request."""
        if pieces and not self.first_token:
            self.first_token = time.monotonic()
        for piece in pieces:
            before = self._pieces.get(piece.index)
            self._pieces[piece.index] = before.merge_with(piece) if before else piece
        self._fault = self._fault or fault
        self._ready.set()

    async def take_chunks(self) -> list[OutputChunk]:
        """What has come since the last call, at least one piece; empty once every answer has ended. Raises: what the engine has found at fault."""
        if self._ended == self.rows:
            return []
        await self._ready.wait()
        if self._fault:
            raise self._fault
        self._ready.clear()
        found, self._pieces = list(self._pieces.values()), {}
        self._ended += sum(piece.finish is not None for piece in found)
        return found

    def call_in_loop(self, call: Any, *given: Any) -> None:
        """Runs `call` in the event loop of the request's handler."""
        self._loop.call_soon_threadsafe(call, *given)


@dataclass
class SequenceState:
    """One answer that is being written.

    Attributes:
        limit: most tokens that may be written.
        ends: the tokens that end an answer.
    """

    request: RequestHandle
    index: int
    prompt: list[int]
    sampling: SamplingParams
    limit: int
    ends: Collection[int]
    detokenizer: StreamDetokenizer
    draws: torch.Generator | None
    written: list[int] = field(default_factory=list)

    def sample_next(self, logits: torch.Tensor, likeliest: int) -> OutputChunk:
        """What the next token adds. `logits`: float32, of this row."""
        how = self.sampling
        token = (
            likeliest if how.is_greedy else sampling.sample_token(logits, self.prompt, self.written, how, self.draws)
        )
        chosen = sampling.get_top_logprobs(logits, token, how)
        self.written.append(token)
        text = self.detokenizer.add_token(token) if token not in self.ends else ""
        finish = self._get_finish_reason(token)
        if finish:
            text += self.detokenizer.flush_text()
            finish = "stop" if self.detokenizer.stopped else finish
        ids = self.written if finish and not self.detokenizer.stopped else None
        return OutputChunk(self.index, text, 1, [chosen] if chosen else [], finish, ids)

    def _get_finish_reason(self, token: int) -> str | None:
        if token in self.ends or self.detokenizer.stopped:
            return "stop"
        return "length" if len(self.written) >= self.limit else None
