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
from peftrun.models.base import Base
from peftrun.serving import errors, responses, sampling, tool_calls
from peftrun.serving.adapter_registry import Versions
from peftrun.serving.detokenizer import Writing
from peftrun.serving.engine import Engine
from peftrun.serving.metrics import Watch
from peftrun.serving.request_state import Piece, Row, Ticket
from peftrun.serving.requests import ChatWish, CompletionWish
from peftrun.serving.sampling import Sampling
from peftrun.tasks import end_tokens, length_checks
from peftrun.tasks.tokenization import Encoder


@dataclass(frozen=True)
class Plan:
    """A request, read: what is to be computed for it."""

    prompts: list[list[int]]
    each: int  # answers to a prompt
    limit: int
    stops: list[str]
    sampling: Sampling
    letter: responses.Letter

    @property
    def rows(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.each


class Service:
    """What the routes call. `stopping`: no request is taken any more."""

    def __init__(
        self, base: Base, engine: Engine, versions: Versions, watch: Watch, action: ServeAction, *, task: TaskSpec
    ) -> None:
        self.base, self.engine, self.versions, self.watch, self.action = base, engine, versions, watch, action
        self.stopping = False
        self.positions = length_checks.positions(base.model)
        self.ends = frozenset(end_tokens.end_tokens(base.model, base.tokenizer))
        self.special = end_tokens.special_tokens(base.tokenizer)
        self.vocabulary = int(base.model.config.get_text_config().vocab_size)
        self.embedded = int(base.model.get_input_embeddings().weight.shape[0])
        self.repetition_penalty = float(getattr(base.model.generation_config, "repetition_penalty", None) or 1.0)
        self._reader = copy.deepcopy(base.tokenizer)  # the engine's thread decodes with the other
        self._encoder = Encoder(self._reader, task)
        self._reading = ThreadPoolExecutor(1, "tokenizer")

    async def ask(self, wish: ChatWish | CompletionWish) -> tuple[Ticket, responses.Letter]:
        """Puts a request in the queue. Raises: ApiFault: it cannot be answered."""
        if self.stopping:
            raise errors.stopping()
        version = self.versions.taken(wish.model)
        if version is None:
            raise errors.no_such_model(wish.model, self.versions.names())
        try:
            plan = await asyncio.get_running_loop().run_in_executor(self._reading, self._plan, wish)
            ticket = Ticket(version, plan.prompts, plan.rows)
            self.engine.submit(ticket, self._rows(ticket, plan))
        except BaseException:
            self.versions.left(version)
            raise
        self.watch.prompt_tokens.labels(version.name).inc(plan.letter.usage.prompt)
        return ticket, plan.letter

    async def pieces(self, ticket: Ticket, letter: responses.Letter) -> AsyncGenerator[list[Piece]]:
        """What is written, as it comes. Raises: ApiFault: it took too long, or the engine failed. However it ends, the engine lets go."""
        deadline = ticket.arrived + self.action.request_timeout
        name = ticket.version.name
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    found = await ticket.take()
                if not found:
                    break
                written = sum(piece.tokens for piece in found)
                letter.usage.written += written
                self.watch.written_tokens.labels(name).inc(written)
                yield found
            self.watch.seconds.labels(name).observe(asyncio.get_running_loop().time() - ticket.arrived)
            self.watch.first_token.labels(name).observe(ticket.first_token - ticket.arrived)
        except TimeoutError as error:
            raise errors.timed_out(self.action.request_timeout) from error
        finally:
            self.engine.cancel(ticket)

    async def whole(self, ticket: Ticket, letter: responses.Letter) -> dict[str, Any]:
        """The reply at once. Raises: ApiFault: see `pieces`."""
        whole: dict[int, Piece] = {}
        async with aclosing(self.pieces(ticket, letter)) as found:
            async for pieces in found:
                for piece in pieces:
                    whole[piece.index] = whole[piece.index].grown(piece) if piece.index in whole else piece
        return letter.whole(whole)

    def close(self) -> None:
        """Ends the thread that reads prompts."""
        self._reading.shutdown(wait=False, cancel_futures=True)

    def _plan(self, wish: ChatWish | CompletionWish) -> Plan:
        form: responses.Chat | responses.Completion
        if isinstance(wish, ChatWish):
            prompts, form = self._chat(wish)
        else:
            prompts, form = self._prompts(wish), responses.Completion()
        for ids in prompts:
            self._check(ids, "messages" if isinstance(wish, ChatWish) else "prompt")
        if len(prompts) * wish.n > self.action.max_waiting:
            raise errors.invalid(f"Invalid value for 'n': at most {self.action.max_waiting} answers at once", "n")
        usage = responses.Usage(sum(map(len, prompts)))
        logprobs = wish.alternatives()
        return Plan(
            prompts=prompts,
            each=wish.n,
            limit=self._limit(max(map(len, prompts)), wish.most()),
            stops=wish.stops(),
            sampling=wish.sampling(logprobs, self.repetition_penalty, self.vocabulary),
            letter=responses.Letter(form, wish.model, usage, self._reader, logprobs is not None),
        )

    def _chat(self, wish: ChatWish) -> tuple[list[list[int]], responses.Chat]:
        """The prompt, and how its answers are written."""
        conversation = wish.conversation()
        try:
            unwritten = self._encoder.check("", conversation)
            prompt = self._encoder.prompt(conversation)
        except DataError as error:  # what comes behind a semicolon is advice on rows
            raise errors.invalid(" ".join(line.partition("; ")[0] for line in error.lines), "messages") from error
        if conversation.tools and "tools" in unwritten:
            raise errors.invalid(
                "Unsupported value: 'tools': this model has no chat template that would show them to it; omit them", "tools", "unsupported_value"
            )  # fmt: skip
        reader = (
            tool_calls.reader(self._reader, self.base.model, prompt, conversation.tools) if conversation.tools else None
        )
        return [prompt], responses.Chat(reader)

    def _prompts(self, wish: Any) -> list[list[int]]:
        return [self._encoder.plain(one) if isinstance(one, str) else one for one in wish.prompts()]

    def _check(self, ids: list[int], field: str) -> None:
        if not ids:
            raise errors.invalid(f"Invalid value for '{field}': holds no token", field)
        if max(ids) >= self.embedded:
            raise errors.invalid(f"Invalid value for '{field}': the model knows no token {max(ids)}", field)

    def _limit(self, prompt: int, asked: int | None) -> int:
        """Tokens that may be written. Raises: ApiFault: the base does not read so many."""
        room = None if self.positions is None else self.positions - prompt
        if room is None:
            return asked or self.action.max_new_tokens
        if room < (asked or 1):
            raise errors.too_long(prompt, asked or 1, self.positions or 0)
        return asked or min(self.action.max_new_tokens, room)

    def _rows(self, ticket: Ticket, plan: Plan) -> list[Row]:
        device, tokenizer = self.base.model.device, self.base.tokenizer
        return [
            Row(
                ticket=ticket,
                index=number,
                prompt=plan.prompts[number // plan.each],
                sampling=plan.sampling,
                limit=plan.limit,
                ends=self.ends | {self.special[stop] for stop in plan.stops if stop in self.special},
                writing=Writing(tokenizer, plan.stops),
                draws=sampling.generator(plan.sampling, number, device),
            )
            for number in range(plan.rows)
        ]
