"""A web app served from this process until it is stopped."""

import socket
from typing import Any

from peftrun.errors import ConfigError
from peftrun.system import sockets

WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # wildcard address → what a browser on this machine opens
SHUTDOWN_SECONDS = 1  # given to open connections at the end


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at this address. Raises: ConfigError: it cannot be bound, for example because it is in use."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections to expire
    try:
        bound.bind((host, port))
        bound.listen()  # before the URL is printed, so that a client can connect at once
    except sockets.BIND_ERRORS as error:
        bound.close()
        raise ConfigError(sockets.explain_bind_error(host, port, error)) from error
    return bound


def format_url(listening: socket.socket) -> str:
    """The URL to open in a browser on this machine."""
    host, port = listening.getsockname()[:2]
    host = WILDCARD_HOSTS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve_app(app: Any, listening: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM."""
    import uvicorn

    settings = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        return  # uvicorn raises the signal again once it has shut down
