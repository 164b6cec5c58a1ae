"""From a wish to rows for the engine, and from what the engine hands over to the reply."""

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
    """A request, read: what is to be computed for it."""

    prompts: list[list[int]]
    each: int  # answers to a prompt
    limit: int
    stops: list[str]
    sampling: SamplingParams
    response: responses.ResponseBuilder

    @property
    def rows(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.each


class Service:
    """What the routes call. `stopping`: no request is taken any more."""

    def __init__(
        self,
        base: LoadedBase,
        engine: Engine,
        versions: AdapterRegistry,
        watch: Metrics,
        action: ServeAction,
        *,
        task: TaskSpec,
    ) -> None:
        self.base, self.engine, self.versions, self.metrics, self.action = base, engine, versions, watch, action
        self.stopping = False
        self.positions = length_checks.positions(base.model)
        self.ends = frozenset(end_tokens.find_end_tokens(base.model, base.tokenizer))
        self.special = end_tokens.list_special_tokens(base.tokenizer)
        self.vocabulary = int(base.model.config.get_text_config().vocab_size)
        self.embedded = int(base.model.get_input_embeddings().weight.shape[0])
        self.repetition_penalty = float(getattr(base.model.generation_config, "repetition_penalty", None) or 1.0)
        self._reader = copy.deepcopy(base.tokenizer)  # the engine's thread decodes with the other
        self._encoder = Encoder(self._reader, task)
        self._reading = ThreadPoolExecutor(1, "tokenizer")

    async def submit_request(
        self, wish: ChatCompletionRequest | CompletionRequest
    ) -> tuple[RequestHandle, responses.ResponseBuilder]:
        """Puts a request in the queue. Raises: ApiFault: it cannot be answered."""
        if self.stopping:
            raise errors.shutting_down()
        version = self.versions.acquire(wish.model)
        if version is None:
            raise errors.model_not_found(wish.model, self.versions.list_names())
        try:
            plan = await asyncio.get_running_loop().run_in_executor(self._reading, self._prepare_request, wish)
            ticket = RequestHandle(version, plan.prompts, plan.rows)
            self.engine.submit(ticket, self._build_sequences(ticket, plan))
        except BaseException:
            self.versions.release_version(version)
            raise
        self.metrics.prompt_tokens.labels(version.name).inc(plan.response.usage.prompt)
        return ticket, plan.response

    async def stream_chunks(
        self, ticket: RequestHandle, letter: responses.ResponseBuilder
    ) -> AsyncGenerator[list[OutputChunk]]:
        """What is written, as it comes. Raises: ApiFault: it took too long, or the engine failed. However it ends, the engine lets go."""
        deadline = ticket.arrived + self.action.request_timeout
        name = ticket.version.name
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    found = await ticket.take_chunks()
                if not found:
                    break
                written = sum(piece.tokens for piece in found)
                letter.usage.written += written
                self.metrics.written_tokens.labels(name).inc(written)
                yield found
            self.metrics.seconds.labels(name).observe(asyncio.get_running_loop().time() - ticket.arrived)
            self.metrics.first_token.labels(name).observe(ticket.first_token - ticket.arrived)
        except TimeoutError as error:
            raise errors.request_timeout(self.action.request_timeout) from error
        finally:
            self.engine.cancel(ticket)

    async def collect_response(self, ticket: RequestHandle, letter: responses.ResponseBuilder) -> dict[str, Any]:
        """The reply at once. Raises: ApiFault: see `pieces`."""
        whole: dict[int, OutputChunk] = {}
        async with aclosing(self.stream_chunks(ticket, letter)) as found:
            async for pieces in found:
                for piece in pieces:
                    whole[piece.index] = whole[piece.index].merge_with(piece) if piece.index in whole else piece
        return letter.build_full(whole)

    def close(self) -> None:
        """Ends the thread that reads prompts."""
        self._reading.shutdown(wait=False, cancel_futures=True)

    def _prepare_request(self, wish: ChatCompletionRequest | CompletionRequest) -> PreparedRequest:
        form: responses.ChatFormat | responses.CompletionFormat
        if isinstance(wish, ChatCompletionRequest):
            prompts, form = self._prepare_chat(wish)
        else:
            prompts, form = self._encode_prompts(wish), responses.CompletionFormat()
        for ids in prompts:
            self._check_token_ids(ids, "messages" if isinstance(wish, ChatCompletionRequest) else "prompt")
        if len(prompts) * wish.n > self.action.max_waiting:
            raise errors.invalid_request(
                f"Invalid value for 'n': at most {self.action.max_waiting} answers at once", "n"
            )
        usage = responses.Usage(sum(map(len, prompts)))
        logprobs = wish.get_top_logprobs()
        return PreparedRequest(
            prompts=prompts,
            each=wish.n,
            limit=self._resolve_max_tokens(max(map(len, prompts)), wish.get_max_tokens()),
            stops=wish.list_stops(),
            sampling=wish.build_sampling_params(logprobs, self.repetition_penalty, self.vocabulary),
            response=responses.ResponseBuilder(form, wish.model, usage, self._reader, logprobs is not None),
        )

    def _prepare_chat(self, wish: ChatCompletionRequest) -> tuple[list[list[int]], responses.ChatFormat]:
        """The prompt, and how its answers are written."""
        conversation = wish.build_conversation()
        try:
            unwritten = self._encoder.check("", conversation)
            prompt = self._encoder.prompt(conversation)
        except DataError as error:  # what comes behind a semicolon is advice on rows
            raise errors.invalid_request(
                " ".join(line.partition("; ")[0] for line in error.lines), "messages"
            ) from error
        if conversation.tools and "tools" in unwritten:
            raise errors.invalid_request(
                "Unsupported value: 'tools': this model has no chat template that would show them to it; omit them", "tools", "unsupported_value"
            )  # fmt: skip
        reader = (
            tool_calls.build_tool_parser(self._reader, self.base.model, prompt, conversation.tools)
            if conversation.tools
            else None
        )
        return [prompt], responses.ChatFormat(reader)

    def _encode_prompts(self, wish: Any) -> list[list[int]]:
        return [self._encoder.plain(one) if isinstance(one, str) else one for one in wish.list_prompts()]

    def _check_token_ids(self, ids: list[int], field: str) -> None:
        if not ids:
            raise errors.invalid_request(f"Invalid value for '{field}': holds no token", field)
        if max(ids) >= self.embedded:
            raise errors.invalid_request(f"Invalid value for '{field}': the model knows no token {max(ids)}", field)

    def _resolve_max_tokens(self, prompt: int, asked: int | None) -> int:
        """Tokens that may be written. Raises: ApiFault: the base does not read so many."""
        room = None if self.positions is None else self.positions - prompt
        if room is None:
            return asked or self.action.max_new_tokens
        if room < (asked or 1):
            raise errors.context_length_exceeded(prompt, asked or 1, self.positions or 0)
        return asked or min(self.action.max_new_tokens, room)

    def _build_sequences(self, ticket: RequestHandle, plan: PreparedRequest) -> list[SequenceState]:
        device, tokenizer = self.base.model.device, self.base.tokenizer
        return [
            SequenceState(
                request=ticket,
                index=number,
                prompt=plan.prompts[number // plan.each],
                sampling=plan.sampling,
                limit=plan.limit,
                ends=self.ends | {self.special[stop] for stop in plan.stops if stop in self.special},
                detokenizer=StreamDetokenizer(tokenizer, plan.stops),
                draws=sampling.build_generator(plan.sampling, number, device),
            )
            for number in range(plan.rows)
        ]
