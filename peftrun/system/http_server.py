"""A page served from this process until somebody stops it."""

import socket
from typing import Any

from peftrun.errors import ConfigError
from peftrun.system import sockets

WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a browser on this machine finds what is open to all
SHUTDOWN_SECONDS = 1  # seconds that open connections get


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at this address. Raises: ConfigError: it cannot be had, because another program has it for example."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()  # whoever reads the address may ask at once
    except sockets.BIND_ERRORS as error:
        found.close()
        raise ConfigError(sockets.explain_bind_error(host, port, error)) from error
    return found


def format_url(listening: socket.socket) -> str:
    """What to open in a browser on this machine."""
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
        return  # uvicorn raises the signal again once all is closed
