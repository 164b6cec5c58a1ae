"""A request on its way through the engine: its handle, its sequences, and the chunks of output that they add."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from peftrun.serving.adapter_registry import AdapterVersion
from peftrun.serving.detokenizer import StreamDetokenizer
from peftrun.serving.sampling import SampledToken, SamplingParams


@dataclass
class OutputChunk:
    """What a step, or several, have added to answer number `index` of a request.

    Attributes:
        tokens: how many tokens.
        finish: the finish reason, "stop" or "length"; None: the answer is not complete.
        ids: all tokens of the answer, if it is complete and did not end at a stop string.
    """

    index: int
    text: str = ""
    tokens: int = 0
    logprobs: list[SampledToken] = field(default_factory=list)
    finish: str | None = None
    ids: list[int] | None = None

    def merge_with(self, later: "OutputChunk") -> "OutputChunk":
        """Both as one chunk."""
        logprobs = self.logprobs + later.logprobs
        return OutputChunk(
            self.index, self.text + later.text, self.tokens + later.tokens, logprobs, later.finish, later.ids
        )


class RequestHandle:
    """One request, between its handler in the event loop and the engine's thread.

    Chunks that the handler has not taken yet are merged, one per answer, so that a slow reader costs no more memory than
    the text of its answers.

    Args: prompts: token ids. rows: the number of answers.
    Attributes: arrived, first_token: times by the monotonic clock, seconds. cancelled: set by the handler, read by the engine.
    """

    def __init__(self, version: AdapterVersion, prompts: Sequence[list[int]], rows: int) -> None:
        self.version, self.prompts, self.rows = version, prompts, rows
        self.arrived, self.first_token = time.monotonic(), 0.0
        self.cancelled = False
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._chunks: dict[int, OutputChunk] = {}
        self._error: Exception | None = None
        self._ended = 0

    def add_chunks(self, chunks: list[OutputChunk], error: Exception | None = None) -> None:
        """Called in the event loop: what the engine has for this request."""
        if chunks and not self.first_token:
            self.first_token = time.monotonic()
        for chunk in chunks:
            earlier = self._chunks.get(chunk.index)
            self._chunks[chunk.index] = earlier.merge_with(chunk) if earlier else chunk
        self._error = self._error or error
        self._ready.set()

    async def take_chunks(self) -> list[OutputChunk]:
        """Waits for chunks, and returns those since the last call; empty once every answer is complete.

        Raises: the error with which the engine has ended the request.
        """
        if self._ended == self.rows:
            return []
        await self._ready.wait()
        if self._error:
            raise self._error
        self._ready.clear()
        chunks, self._chunks = list(self._chunks.values()), {}
        self._ended += sum(chunk.finish is not None for chunk in chunks)
        return chunks

    def call_in_loop(self, function: Any, *args: Any) -> None:
        """Runs `function` in the event loop of the request's handler."""
        self._loop.call_soon_threadsafe(function, *args)


@dataclass
class SequenceState:
    """One answer that is being generated.

    Attributes:
        limit: most tokens of the answer.
        ends: tokens that end it.
        seed: of its random stream.
        written: its tokens so far.
        token_counts: see `batch_sampler`; None: nothing depends on them, or the row has been in no batch yet.
    """

    request: RequestHandle
    index: int
    prompt: list[int]
    sampling: SamplingParams
    limit: int
    ends: Collection[int]
    detokenizer: StreamDetokenizer
    seed: int
    written: list[int] = field(default_factory=list)
    token_counts: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the cache between two steps: all but the latest."""
        return len(self.prompt) + len(self.written) - 1

    def add_token(self, token: int, sampled: SampledToken | None) -> OutputChunk:
        """Appends a token; what it adds to the answer. Args: sampled: its log probability, if the request wants to know it."""
        self.written.append(token)
        text = self.detokenizer.add_token(token) if token not in self.ends else ""
        finish = None
        if token in self.ends or self.detokenizer.stopped:
            finish = "stop"
        elif len(self.written) >= self.limit:
            finish = "length"
        if finish:
            text += self.detokenizer.flush_text()
            finish = "stop" if self.detokenizer.stopped else finish  # the rest of the text may complete a stop string
        ids = self.written if finish and not self.detokenizer.stopped else None
        return OutputChunk(self.index, text, 1, [sampled] if sampled else [], finish, ids)
