"""Errors that a client gets, in the format that OpenAI's clients read."""

from typing import Any

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(Exception):
    """An HTTP status and the four fields of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, kind: str = INVALID, code: str | None = None, param: str | None = None
    ) -> None:
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        """When to retry, and how to authenticate."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}  # seconds
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Status 400. Args: param: the field that is wrong."""
    return ApiError(400, message, INVALID, code, param)


def model_not_found(name: str, served: list[str]) -> ApiError:
    """Status 404, with the names that are served."""
    return ApiError(
        404, f"The model `{name}` does not exist; served: {', '.join(served)}", INVALID, "model_not_found", "model"
    )


def context_length_exceeded(prompt: int, completion: int, limit: int) -> ApiError:
    """Status 400: prompt and completion have more tokens than the base model has positions."""
    # In the words of OpenAI's API, for clients that match them.
    return invalid_request(
        f"This model's maximum context length is {limit} tokens. However, you requested {prompt + completion} tokens "
        f"({prompt} in the messages, {completion} in the completion). Please reduce the length of the messages or completion.",
        "messages",
        "context_length_exceeded",
    )


def queue_full(waiting: int) -> ApiError:
    """Status 429: the batch is full, and so is the queue."""
    return ApiError(
        429, f"{waiting} answers are waiting, which is the limit; try again later", "rate_limit_error", "queue_full"
    )


def request_timeout(seconds: float) -> ApiError:
    """Status 504: the answer was not complete in time."""
    return ApiError(504, f"the answer took more than {seconds:g} seconds", "timeout_error", "request_timeout")


def shutting_down() -> ApiError:
    """Status 503: the server is shutting down."""
    return ApiError(503, "the server is shutting down", SERVER, "shutting_down")


def engine_error(reason: str) -> ApiError:
    """Status 500: the engine failed to compute this answer."""
    return ApiError(500, f"the answer could not be computed ({reason})", SERVER, "engine_error")
