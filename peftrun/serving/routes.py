"""The server's routes: OpenAI's, vLLM's for adapters, health and metrics."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException

from peftrun.serving import errors, requests, responses
from peftrun.serving.adapter_manager import Swapper
from peftrun.serving.request_state import Piece, Ticket
from peftrun.serving.responses import Letter
from peftrun.serving.service import Service


def application(service: Service, swapper: Swapper, may_swap: bool) -> FastAPI:
    """All routes. Args: may_swap: whether clients may add and remove adapters."""
    app = FastAPI(title="peftrun", openapi_url=None, docs_url=None, redoc_url=None)
    _answering(app, service)
    _models(app, service)
    _adapters(app, service, swapper, may_swap)
    _watching(app, service)
    app.exception_handler(errors.ApiFault)(_told)
    app.exception_handler(StarletteHTTPException)(_no_route)
    app.exception_handler(Exception)(_bug)
    return app


def _answering(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, requests.ChatWish)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(service, request, requests.CompletionWish)


def _models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": _cards(service)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for card in _cards(service):
            if card["id"] == name:
                return card
        raise errors.no_such_model(name, service.versions.names())


def _adapters(app: FastAPI, service: Service, swapper: Swapper, may_swap: bool) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> dict[str, Any]:
        _check_swap(service, may_swap)
        wish = requests.read(await _body(request, service), requests.LoadWish)
        folder = await asyncio.to_thread(swapper.looked_at, wish)
        proof = await swapper.put(wish, folder)
        service.watch.adapters.set(len(service.versions.adapters()))
        return {"message": f"Success: LoRA adapter '{wish.lora_name}' added successfully.", "proof": proof}

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> dict[str, Any]:
        _check_swap(service, may_swap)
        wish = requests.read(await _body(request, service), requests.UnloadWish)
        swapper.removed(wish.lora_name)
        service.watch.adapters.set(len(service.versions.adapters()))
        return {"message": f"Success: LoRA adapter '{wish.lora_name}' removed successfully."}


def _watching(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        fault = "the server is shutting down" if service.stopping else service.engine.fault
        return JSONResponse({"status": fault or "ok"}, 503 if fault else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.watch.text(), media_type=CONTENT_TYPE_LATEST)


def _cards(service: Service) -> list[dict[str, Any]]:
    found, root = service.versions, service.base.name
    bases = [responses.model_card(name, found.base.created, root, None) for name in dict.fromkeys(found.base_names)]
    return bases + [responses.model_card(one.name, one.created, str(one.path), root) for one in found.adapters()]


def _check_swap(service: Service, may_swap: bool) -> None:
    if service.stopping:
        raise errors.stopping()
    if not may_swap:
        raise errors.ApiFault(
            403, "Adapters are changed from this machine alone, or with a key (action.api_key_env)", "permission_error"
        )


async def _body(request: Request, service: Service) -> bytes:
    try:
        async with asyncio.timeout(service.action.request_timeout):
            return await request.body()
    except TimeoutError as error:
        raise errors.ApiFault(408, "the request was not sent in time", "timeout_error", "request_timeout") from error


async def _answer(service: Service, request: Request, kind: Any) -> Response:
    wish = requests.read(await _body(request, service), kind)
    request.scope["peftrun.model"] = wish.model if service.versions.find(wish.model) else "unknown"
    if wish.stream_options and not wish.stream:
        raise errors.invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    ticket, letter = await service.ask(wish)
    if not wish.stream:
        return JSONResponse(await _unless_gone(request, service.whole(ticket, letter)))
    found = service.pieces(ticket, letter)
    first = await _unless_gone(request, anext(found))
    usage = bool(wish.stream_options and wish.stream_options.include_usage)
    lines = _events(ticket, letter, first, found, usage)
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(
    ticket: Ticket, letter: Letter, first: list[Piece], rest: AsyncGenerator[list[Piece]], usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; a fault ends them with an event of its own."""
    no_usage = {"usage": None} if usage else {}
    async with aclosing(rest):
        for opening in letter.opening(ticket.rows):
            yield responses.event(opening | no_usage)
        try:
            pieces = first
            while pieces:
                for piece in pieces:
                    yield responses.event(letter.chunk(piece) | no_usage)
                pieces = await anext(rest, [])
        except errors.ApiFault as fault:
            yield responses.event(fault.body())
            return
        if usage:
            yield responses.event(letter.closing())
        yield responses.DONE


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any] | Any) -> Any:
    """What `work` returns. Stops it where the client has gone away meanwhile."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise errors.ApiFault(499, "the client has gone")
        return working.result()
    finally:
        gone.cancel()
        working.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _told(request: Request, fault: Any) -> Response:
    return JSONResponse(fault.body(), fault.status, fault.headers)


async def _no_route(request: Request, error: HTTPException | Any) -> Response:
    wrong = f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else str(error.detail)
    return await _told(request, errors.ApiFault(error.status_code, f"{wrong}"))


async def _bug(request: Request, error: Exception) -> Response:
    return await _told(request, errors.broken(type(error).__name__))
