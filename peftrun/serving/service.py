"""From a parsed request to sequences for the engine, and from the engine's output to the response."""

import asyncio
import copy
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from peftrun.config.schema.actions import ServeAction
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import DataError
from peftrun.models.base import LoadedBase
from peftrun.serving import errors, responses, sampling, tool_calls
from peftrun.serving.adapter_registry import AdapterRegistry
from peftrun.serving.detokenizer import StreamDetokenizer
from peftrun.serving.engine import Engine
from peftrun.serving.metrics import Metrics
from peftrun.serving.request_state import OutputChunk, RequestHandle, SequenceState
from peftrun.serving.requests import ChatCompletionRequest, CompletionRequest
from peftrun.serving.sampling import SamplingParams
from peftrun.tasks import end_tokens, length_checks
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class PreparedRequest:
    """What is to be computed for a request.

    Attributes: prompts: token ids. num_answers: to each prompt. limit: most tokens of an answer. stops: stop strings.
    """

    prompts: list[list[int]]
    num_answers: int
    limit: int
    stops: list[str]
    sampling: SamplingParams
    response: responses.ResponseBuilder

    @property
    def rows(self) -> int:
        """Answers to all prompts."""
        return len(self.prompts) * self.num_answers


class Service:
    """What the routes call.

    Attributes:
        stopping: new requests are refused.
        positions: most tokens of a row; None: the base model sets no limit.
        ends: ids of the tokens that end an answer.
        special: text → id of the special tokens.
        vocab_size, num_embeddings: entries of the logits, and rows of the embedding matrix, which may differ.
    """

    def __init__(
        self,
        base: LoadedBase,
        engine: Engine,
        registry: AdapterRegistry,
        metrics: Metrics,
        action: ServeAction,
        *,
        task: TaskSpec,
    ) -> None:
        self.base, self.engine, self.versions, self.metrics, self.action = base, engine, registry, metrics, action
        self.stopping = False
        self.positions = length_checks.positions(base.model)
        self.ends = frozenset(end_tokens.find_end_tokens(base.model, base.tokenizer))
        self.special = end_tokens.list_special_tokens(base.tokenizer)
        self.vocab_size = int(base.model.config.get_text_config().vocab_size)
        self.num_embeddings = int(base.model.get_input_embeddings().weight.shape[0])
        self.repetition_penalty = float(getattr(base.model.generation_config, "repetition_penalty", None) or 1.0)
        # A fast tokenizer must not be used by two threads at once: the engine's thread decodes with the original, and a
        # single thread encodes with this copy, outside the event loop.
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._encoder = Encoder(self._tokenizer, task)
        self._encoding_thread = ThreadPoolExecutor(1, "tokenizer")

    async def submit_request(
        self, request: ChatCompletionRequest | CompletionRequest
    ) -> tuple[RequestHandle, responses.ResponseBuilder]:
        """Adds a request to the engine's queue. Raises: ApiError: it cannot be answered."""
        if self.stopping:
            raise errors.shutting_down()
        version = self.versions.acquire(request.model)
        if version is None:
            raise errors.model_not_found(request.model, self.versions.list_names())
        try:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._encoding_thread, self._prepare_request, request)
            handle = RequestHandle(version, prepared.prompts, prepared.rows)
            self.engine.submit(handle, self._build_sequences(handle, prepared))
        except BaseException:
            self.versions.release_version(version)
            raise
        self.metrics.prompt_tokens.labels(version.name).inc(prepared.response.usage.prompt)
        return handle, prepared.response

    async def stream_chunks(
        self, handle: RequestHandle, builder: responses.ResponseBuilder
    ) -> AsyncGenerator[list[OutputChunk]]:
        """Chunks of the answers, as they are generated. However it ends, the engine drops the request.

        Raises: ApiError: the answers took too long, or the engine failed.
        """
        # The event loop's clock and `arrived` are both time.monotonic.
        deadline = handle.arrived + self.action.request_timeout
        name = handle.version.name
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    chunks = await handle.take_chunks()
                if not chunks:
                    break
                num_tokens = sum(chunk.tokens for chunk in chunks)
                builder.usage.written += num_tokens
                self.metrics.written_tokens.labels(name).inc(num_tokens)
                yield chunks
            self.metrics.seconds.labels(name).observe(asyncio.get_running_loop().time() - handle.arrived)
            self.metrics.first_token.labels(name).observe(handle.first_token - handle.arrived)
        except TimeoutError as error:
            raise errors.request_timeout(self.action.request_timeout) from error
        finally:
            self.engine.cancel(handle)

    async def collect_response(self, handle: RequestHandle, builder: responses.ResponseBuilder) -> dict[str, Any]:
        """The whole response. Raises: ApiError: see `stream_chunks`."""
        answers: dict[int, OutputChunk] = {}
        async with aclosing(self.stream_chunks(handle, builder)) as stream:
            async for chunks in stream:
                for chunk in chunks:
                    earlier = answers.get(chunk.index)
                    answers[chunk.index] = earlier.merge_with(chunk) if earlier else chunk
        return builder.build_full(answers)

    def close(self) -> None:
        """Ends the thread that encodes prompts."""
        self._encoding_thread.shutdown(wait=False, cancel_futures=True)

    def _prepare_request(self, request: ChatCompletionRequest | CompletionRequest) -> PreparedRequest:
        form: responses.ChatFormat | responses.CompletionFormat
        if isinstance(request, ChatCompletionRequest):
            prompts, form = self._prepare_chat(request)
            field = "messages"
        else:
            prompts, form = (
                [
                    self._encoder.plain(prompt) if isinstance(prompt, str) else prompt
                    for prompt in request.list_prompts()
                ],
                responses.CompletionFormat(),
            )
            field = "prompt"
        for ids in prompts:
            if not ids:
                raise errors.invalid_request(f"Invalid value for '{field}': holds no token", field)
            if max(ids) >= self.num_embeddings:
                raise errors.invalid_request(f"Invalid value for '{field}': the model knows no token {max(ids)}", field)
        if len(prompts) * request.n > self.action.max_waiting:
            raise errors.invalid_request(
                f"Invalid value for 'n': at most {self.action.max_waiting} answers at once", "n"
            )
        usage = responses.Usage(sum(map(len, prompts)))
        logprobs = request.get_top_logprobs()
        return PreparedRequest(
            prompts=prompts,
            num_answers=request.n,
            limit=self._resolve_max_tokens(max(map(len, prompts)), request.get_max_tokens()),
            stops=request.list_stops(),
            sampling=request.build_sampling_params(logprobs, self.repetition_penalty, self.vocab_size),
            response=responses.ResponseBuilder(form, request.model, usage, self._tokenizer, logprobs is not None),
        )

    def _prepare_chat(self, request: ChatCompletionRequest) -> tuple[list[list[int]], responses.ChatFormat]:
        """The prompt, and the format of its answers."""
        conversation = request.build_conversation()
        try:
            unwritten = self._encoder.check("", conversation)
            prompt = self._encoder.prompt(conversation)
        except DataError as error:  # what follows a semicolon is advice on training rows
            raise errors.invalid_request(
                " ".join(line.partition("; ")[0] for line in error.lines), "messages"
            ) from error
        if not conversation.tools:
            return [prompt], responses.ChatFormat(None)
        if "tools" in unwritten:
            raise errors.invalid_request(
                "Unsupported value: 'tools': this model has no chat template that would show them to it; omit them", "tools", "unsupported_value"
            )  # fmt: skip
        parser = tool_calls.build_tool_parser(self._tokenizer, self.base.model, prompt, conversation.tools)
        return [prompt], responses.ChatFormat(parser)

    def _resolve_max_tokens(self, prompt: int, requested: int | None) -> int:
        """Most tokens of an answer to a prompt of so many tokens.

        Raises: ApiError: the base model has too few positions for the prompt and the requested tokens.
        """
        if self.positions is None:
            return requested or self.action.max_new_tokens
        available = self.positions - prompt
        if available < (requested or 1):
            raise errors.context_length_exceeded(prompt, requested or 1, self.positions)
        return requested or min(self.action.max_new_tokens, available)

    def _build_sequences(self, handle: RequestHandle, prepared: PreparedRequest) -> list[SequenceState]:
        tokenizer = self.base.tokenizer
        # A special token has no text, so a detokenizer would not find it: it ends the answer as a token.
        special_stops = {self.special[stop] for stop in prepared.stops if stop in self.special}
        return [
            SequenceState(
                request=handle,
                index=index,
                prompt=prepared.prompts[index // prepared.num_answers],
                sampling=prepared.sampling,
                limit=prepared.limit,
                ends=self.ends | special_stops,
                detokenizer=StreamDetokenizer(tokenizer, prepared.stops),
                seed=sampling.choose_seed(prepared.sampling, index),
            )
            for index in range(prepared.rows)
        ]
