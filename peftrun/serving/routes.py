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
from peftrun.serving.adapter_manager import AdapterManager
from peftrun.serving.request_state import OutputChunk, RequestHandle
from peftrun.serving.responses import ResponseBuilder
from peftrun.serving.service import Service


def create_app(service: Service, swapper: AdapterManager, may_swap: bool) -> FastAPI:
    """All routes. Args: may_swap: whether clients may add and remove adapters."""
    app = FastAPI(title="peftrun", openapi_url=None, docs_url=None, redoc_url=None)
    _add_completion_routes(app, service)
    _add_model_routes(app, service)
    _add_adapter_routes(app, service, swapper, may_swap)
    _add_health_routes(app, service)
    app.exception_handler(errors.ApiError)(_render_error)
    app.exception_handler(StarletteHTTPException)(_handle_http_error)
    app.exception_handler(Exception)(_handle_unexpected_error)
    return app


def _add_completion_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        return await _handle_completion(service, request, requests.ChatCompletionRequest)

    @app.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        return await _handle_completion(service, request, requests.CompletionRequest)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": _list_model_cards(service)}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        for card in _list_model_cards(service):
            if card["id"] == name:
                return card
        raise errors.model_not_found(name, service.versions.list_names())


def _add_adapter_routes(app: FastAPI, service: Service, swapper: AdapterManager, may_swap: bool) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request) -> dict[str, Any]:
        _check_may_swap(service, may_swap)
        wish = requests.parse_request(await _read_body(request, service), requests.LoadLoraRequest)
        folder = await asyncio.to_thread(swapper.validate_adapter, wish)
        proof = await swapper.serve_adapter(wish, folder)
        service.metrics.adapters.set(len(service.versions.list_adapters()))
        return {"message": f"Success: LoRA adapter '{wish.lora_name}' added successfully.", "proof": proof}

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(request: Request) -> dict[str, Any]:
        _check_may_swap(service, may_swap)
        wish = requests.parse_request(await _read_body(request, service), requests.UnloadLoraRequest)
        swapper.remove_adapter(wish.lora_name)
        service.metrics.adapters.set(len(service.versions.list_adapters()))
        return {"message": f"Success: LoRA adapter '{wish.lora_name}' removed successfully."}


def _add_health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def check_health() -> Response:
        fault = "the server is shutting down" if service.stopping else service.engine.failure_reason
        return JSONResponse({"status": fault or "ok"}, 503 if fault else 200)

    @app.get("/metrics")
    async def get_metrics() -> Response:
        return Response(service.metrics.render_text(), media_type=CONTENT_TYPE_LATEST)


def _list_model_cards(service: Service) -> list[dict[str, Any]]:
    found, root = service.versions, service.base.name
    bases = [
        responses.build_model_card(name, found.base.created, root, None) for name in dict.fromkeys(found.base_names)
    ]
    return bases + [
        responses.build_model_card(one.name, one.created, str(one.path), root) for one in found.list_adapters()
    ]


def _check_may_swap(service: Service, may_swap: bool) -> None:
    if service.stopping:
        raise errors.shutting_down()
    if not may_swap:
        raise errors.ApiError(
            403, "Adapters are changed from this machine alone, or with a key (action.api_key_env)", "permission_error"
        )


async def _read_body(request: Request, service: Service) -> bytes:
    try:
        async with asyncio.timeout(service.action.request_timeout):
            return await request.body()
    except TimeoutError as error:
        raise errors.ApiError(408, "the request was not sent in time", "timeout_error", "request_timeout") from error


async def _handle_completion(service: Service, request: Request, kind: Any) -> Response:
    wish = requests.parse_request(await _read_body(request, service), kind)
    request.scope["peftrun.model"] = wish.model if service.versions.find_version(wish.model) else "unknown"
    if wish.stream_options and not wish.stream:
        raise errors.invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    ticket, letter = await service.submit_request(wish)
    if not wish.stream:
        return JSONResponse(await _cancel_if_disconnected(request, service.collect_response(ticket, letter)))
    found = service.stream_chunks(ticket, letter)
    first = await _cancel_if_disconnected(request, anext(found))
    usage = bool(wish.stream_options and wish.stream_options.include_usage)
    lines = _stream_events(ticket, letter, first, found, usage)
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _stream_events(
    ticket: RequestHandle,
    letter: ResponseBuilder,
    first: list[OutputChunk],
    rest: AsyncGenerator[list[OutputChunk]],
    usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events; a fault ends them with an event of its own."""
    no_usage = {"usage": None} if usage else {}
    async with aclosing(rest):
        for opening in letter.build_first_chunks(ticket.rows):
            yield responses.format_event(opening | no_usage)
        try:
            pieces = first
            while pieces:
                for piece in pieces:
                    yield responses.format_event(letter.build_chunk(piece) | no_usage)
                pieces = await anext(rest, [])
        except errors.ApiError as fault:
            yield responses.format_event(fault.body())
            return
        if usage:
            yield responses.format_event(letter.build_last_chunk())
        yield responses.DONE_EVENT


async def _cancel_if_disconnected(request: Request, work: Coroutine[Any, Any, Any] | Any) -> Any:
    """What `work` returns. Stops it where the client has gone away meanwhile."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise errors.ApiError(499, "the client has gone")
        return working.result()
    finally:
        gone.cancel()
        working.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _render_error(request: Request, fault: Any) -> Response:
    return JSONResponse(fault.body(), fault.status, fault.headers)


async def _handle_http_error(request: Request, error: HTTPException | Any) -> Response:
    wrong = f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else str(error.detail)
    return await _render_error(request, errors.ApiError(error.status_code, f"{wrong}"))


async def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    return await _render_error(request, errors.engine_error(type(error).__name__))
