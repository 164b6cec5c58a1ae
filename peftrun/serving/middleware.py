"""What is checked and counted around every request: API key, content type, size, time to send and to read."""

import asyncio
import hmac
from typing import Any

from starlette.responses import JSONResponse

from peftrun.config.schema.actions import ServeAction
from peftrun.serving import errors
from peftrun.serving.metrics import Metrics

PUBLIC_PATHS = ("/health",)  # answered without a key
NO_KEY = "You did not provide an API key; send the header Authorization: Bearer KEY"
Scope = dict[str, Any]


class RequestMiddleware:
    """An ASGI application that wraps another one. Args: key: the API key; None: no key is needed."""

    def __init__(self, app: Any, action: ServeAction, key: str | None, metrics: Metrics) -> None:
        self._app, self._action, self._key, self._metrics = app, action, key, metrics

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers one request, and counts it by endpoint, model and status."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 499  # nginx' status for a client that disconnects before there is an answer

        async def send_counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            # A client that stops reading must not hold its connection forever.
            await asyncio.wait_for(send(message), self._action.request_timeout)

        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            refusal = self._find_refusal(scope, headers)
            if refusal:
                await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, send_counted)
            else:
                await self._app(scope, self._limit_body(receive), send_counted)
        except TimeoutError:
            pass  # the client does not read; its connection is closed
        finally:
            model = scope.get("peftrun.model", "")
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(endpoint, model, str(status)).inc()
        return None

    def _find_refusal(self, scope: Scope, headers: dict[str, str]) -> errors.ApiError | None:
        """Why the request is refused by its headers alone; None if it is not."""
        authorization = headers.get("authorization", "")
        if self._key is not None and scope["path"] not in PUBLIC_PATHS:
            scheme, _, sent_key = authorization.partition(" ")
            # In constant time, so that the time of a refusal does not reveal how much of the key is right.
            matches = hmac.compare_digest(sent_key.strip().encode("utf-8", "replace"), self._key.encode())
            if not matches or scheme.lower() != "bearer":
                reason = "Incorrect API key provided" if authorization else NO_KEY
                return errors.ApiError(401, reason, errors.INVALID, "invalid_api_key")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and content_type != "application/json":
            # A web page in a browser can send other content types to this machine without a CORS preflight.
            return errors.ApiError(415, "Send the header Content-Type: application/json", code="unsupported_media_type")
        length = headers.get("content-length", "0")
        return self._build_too_large() if length.isdigit() and int(length) > self._action.max_body_bytes else None

    def _build_too_large(self) -> errors.ApiError:
        return errors.ApiError(
            413, f"The body of a request has at most {self._action.max_body_bytes} bytes", code="request_too_large"
        )

    def _limit_body(self, receive: Any) -> Any:
        """`receive` with a limit on the bytes of the body: one that is sent in chunks has no Content-Length."""
        size = 0

        async def receive_limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._action.max_body_bytes:
                raise self._build_too_large()
            return message

        return receive_limited
