"""Around every request: who asks, how much is sent, how long it may take to send and to read, and what is counted."""

import asyncio
import hmac
from typing import Any

from starlette.responses import JSONResponse

from peftrun.config.schema.actions import ServeAction
from peftrun.serving import errors
from peftrun.serving.metrics import Metrics

PUBLIC_PATHS = ("/health",)
NO_KEY = "You did not provide an API key; send the header Authorization: Bearer KEY"
Scope = dict[str, Any]


class RequestMiddleware:
    """An ASGI application around another."""

    def __init__(self, app: Any, action: ServeAction, key: str | None, watch: Metrics) -> None:
        self._app, self._action, self._key, self._metrics = app, action, key, watch

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 499  # the client has gone before there was an answer

        async def send_counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await asyncio.wait_for(send(message), self._action.request_timeout)

        try:
            await self._handle_request(scope, receive, send_counted)
        except TimeoutError:
            pass  # a client that does not read; its connection is closed
        finally:
            model = scope.get("peftrun.model", "")
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(endpoint, model, str(status)).inc()
        return None

    async def _handle_request(self, scope: Scope, receive: Any, send: Any) -> None:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        fault = self._find_refusal(scope, headers)
        if fault:
            return await JSONResponse(fault.body(), fault.status, fault.headers)(scope, receive, send)
        return await self._app(scope, self._limit_body(receive), send)

    def _find_refusal(self, scope: Scope, headers: dict[str, str]) -> errors.ApiError | None:
        shown = headers.get("authorization")
        if self._key is not None and scope["path"] not in PUBLIC_PATHS and not _matches_key(shown, self._key):
            reason = "Incorrect API key provided" if shown else NO_KEY
            return errors.ApiError(401, reason, errors.INVALID, "invalid_api_key")
        if scope["method"] == "POST" and not _is_json(headers.get("content-type", "")):
            return errors.ApiError(415, "Send the header Content-Type: application/json", code="unsupported_media_type")
        length = headers.get("content-length", "0")
        return self._build_too_large() if length.isdigit() and int(length) > self._action.max_body_bytes else None

    def _build_too_large(self) -> errors.ApiError:
        return errors.ApiError(
            413, f"The body of a request has at most {self._action.max_body_bytes} bytes", code="request_too_large"
        )

    def _limit_body(self, receive: Any) -> Any:
        seen = 0

        async def receive_limited() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._action.max_body_bytes:
                raise self._build_too_large()
            return message

        return receive_limited


def _matches_key(given: str | None, key: str) -> bool:
    """Compared in constant time."""
    kind, _, shown = (given or "").partition(" ")
    return hmac.compare_digest(shown.strip().encode("utf-8", "replace"), key.encode()) and kind.lower() == "bearer"


def _is_json(kind: str) -> bool:
    """A page in a browser can send any other kind to this machine without asking."""
    return kind.partition(";")[0].strip().lower() == "application/json"
