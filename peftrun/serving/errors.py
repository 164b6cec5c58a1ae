"""What a client is told when a request cannot be answered, in the shape that OpenAI's clients read."""

from typing import Any

INVALID, SERVER = "invalid_request_error", "server_error"


class ApiError(Exception):
    """One refusal: an HTTP status and the four fields of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, kind: str = INVALID, code: str | None = None, param: str | None = None
    ) -> None:
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        """When it is worth asking again, and how to show who one is."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is at fault."""
    return ApiError(400, message, INVALID, code, param)


def model_not_found(name: str, known: list[str]) -> ApiError:
    """A model that is not served, and those that are."""
    return ApiError(
        404, f"The model `{name}` does not exist; served: {', '.join(known)}", INVALID, "model_not_found", "model"
    )


def context_length_exceeded(prompt: int, wanted: int, most: int) -> ApiError:
    """More tokens than the base reads."""
    return invalid_request(
        f"This model's maximum context length is {most} tokens. However, you requested {prompt + wanted} tokens "
        f"({prompt} in the messages, {wanted} in the completion). Please reduce the length of the messages or completion.",
        "messages",
        "context_length_exceeded",
    )


def queue_full(waiting: int) -> ApiError:
    """Everybody is busy, and so many wait already."""
    return ApiError(
        429, f"{waiting} answers wait already, which is all that may; try again later", "rate_limit_error", "queue_full"
    )


def request_timeout(seconds: float) -> ApiError:
    """The answer was not there in time."""
    return ApiError(504, f"the answer took more than {seconds:g} seconds", "timeout_error", "request_timeout")


def shutting_down() -> ApiError:
    """The server has been told to stop."""
    return ApiError(503, "the server is shutting down", SERVER, "shutting_down")


def engine_error(reason: str) -> ApiError:
    """The engine failed while it computed this answer."""
    return ApiError(500, f"the answer could not be computed ({reason})", SERVER, "engine_error")
