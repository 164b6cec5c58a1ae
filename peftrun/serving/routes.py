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


def create_app(service: Service, manager: AdapterManager, may_swap: bool) -> FastAPI:
    """The application with all routes. Args: may_swap: whether clients may load and unload adapters."""
    app = FastAPI(title="peftrun", openapi_url=None, docs_url=None, redoc_url=None)
    app.exception_handler(errors.ApiError)(_render_error)
    app.exception_handler(StarletteHTTPException)(_handle_http_error)
    app.exception_handler(Exception)(_handle_unexpected_error)
    _add_adapter_routes(app, service, manager, may_swap)

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        return await _handle_completion(service, request, requests.ChatCompletionRequest)

    @app.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        return await _handle_completion(service, request, requests.CompletionRequest)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": _list_model_cards(service)}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        for card in _list_model_cards(service):
            if card["id"] == name:
                return card
        raise errors.model_not_found(name, service.versions.list_names())

    @app.get("/health")
    async def check_health() -> Response:
        problem = "the server is shutting down" if service.stopping else service.engine.failure_reason
        return JSONResponse({"status": problem or "ok"}, 503 if problem else 200)

    @app.get("/metrics")
    async def get_metrics() -> Response:
        return Response(service.metrics.render_text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_adapter_routes(app: FastAPI, service: Service, manager: AdapterManager, may_swap: bool) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request) -> dict[str, Any]:
        _check_may_swap(service, may_swap)
        parsed = requests.parse_request(await _read_body(request, service), requests.LoadLoraRequest)
        adapter = await asyncio.to_thread(manager.validate_adapter, parsed)
        proof = await manager.serve_adapter(adapter)
        service.metrics.adapters.set(len(service.versions.list_adapters()))
        return {"message": f"Success: LoRA adapter '{parsed.lora_name}' added successfully.", "proof": proof}

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(request: Request) -> dict[str, Any]:
        _check_may_swap(service, may_swap)
        parsed = requests.parse_request(await _read_body(request, service), requests.UnloadLoraRequest)
        manager.remove_adapter(parsed.lora_name)
        service.metrics.adapters.set(len(service.versions.list_adapters()))
        return {"message": f"Success: LoRA adapter '{parsed.lora_name}' removed successfully."}


def _list_model_cards(service: Service) -> list[dict[str, Any]]:
    registry, root = service.versions, service.base.name
    bases = [
        responses.build_model_card(name, registry.base.created, root, None)
        for name in dict.fromkeys(registry.base_names)
    ]
    return bases + [
        responses.build_model_card(version.name, version.created, str(version.path), root)
        for version in registry.list_adapters()
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


async def _handle_completion(service: Service, request: Request, request_class: Any) -> Response:
    parsed = requests.parse_request(await _read_body(request, service), request_class)
    # Read by the middleware. Unknown names would each be a new time series in the metrics.
    request.scope["peftrun.model"] = parsed.model if service.versions.find_version(parsed.model) else "unknown"
    if parsed.stream_options and not parsed.stream:
        raise errors.invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    handle, builder = await service.submit_request(parsed)
    if not parsed.stream:
        return JSONResponse(await _cancel_if_disconnected(request, service.collect_response(handle, builder)))
    chunks = service.stream_chunks(handle, builder)
    # The first chunks are awaited here: an error before them still becomes an HTTP status.
    first = await _cancel_if_disconnected(request, anext(chunks))
    include_usage = bool(parsed.stream_options and parsed.stream_options.include_usage)
    events = _stream_events(handle, builder, first, chunks, include_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _stream_events(
    handle: RequestHandle,
    builder: ResponseBuilder,
    first: list[OutputChunk],
    later: AsyncGenerator[list[OutputChunk]],
    include_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events; an error ends the stream with an event of its own."""
    no_usage = {"usage": None} if include_usage else {}
    async with aclosing(later):
        for event in builder.build_first_chunks(handle.rows):
            yield responses.format_event(event | no_usage)
        try:
            chunks = first
            while chunks:
                for chunk in chunks:
                    yield responses.format_event(builder.build_chunk(chunk) | no_usage)
                chunks = await anext(later, [])
        except errors.ApiError as error:
            yield responses.format_event(error.body())
            return
        if include_usage:
            yield responses.format_event(builder.build_last_chunk())
        yield responses.DONE_EVENT


async def _cancel_if_disconnected(request: Request, work: Coroutine[Any, Any, Any] | Any) -> Any:
    """What `work` returns; it is cancelled if the client disconnects first."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise errors.ApiError(499, "the client has gone")
        return working.result()
    finally:
        disconnected.cancel()
        working.cancel()


async def _render_error(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _handle_http_error(request: Request, error: HTTPException | Any) -> Response:
    """Errors of the framework, such as an unknown route, in the format of the API."""
    is_unknown = error.status_code == 404
    message = f"Invalid URL ({request.method} {request.url.path})" if is_unknown else str(error.detail)
    return await _render_error(request, errors.ApiError(error.status_code, message))


async def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    return await _render_error(request, errors.engine_error(type(error).__name__))
