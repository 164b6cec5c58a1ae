"""A socket, and an HTTP server on it until a signal stops it."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import uvicorn

from peftrun import console
from peftrun.errors import ConfigError
from peftrun.serving.service import Service
from peftrun.system import sockets

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACEFUL_SHUTDOWN_SECONDS = 5  # for connections to send what is left, once all requests have ended


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet. Raises: ConfigError: the address cannot be used."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except sockets.BIND_ERRORS as error:
        bound.close()
        raise ConfigError(sockets.explain_bind_error(host, port, error)) from error
    return bound


def format_url(listening: socket.socket) -> str:
    """The base URL of the API for clients."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def run(app: Any, listening: socket.socket, service: Service, started: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM, then lets running requests finish; a second signal ends them.

    Args: started: called once the server listens.
    """
    # asyncio resets signals to the system's default handlers when its loop is closed.
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        asyncio.run(_serve(app, listening, service, started))
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):  # not the main thread: no handler was changed
                signal.signal(number, handler)


async def _serve(app: Any, listening: socket.socket, service: Service, started: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)
    # uvicorn would raise captured signals again when it ends, and the run would count as interrupted.
    server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]
    signals: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    # Outside the main thread there are no handlers to set: the caller owns the signals.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        for number in SIGNALS:
            loop.add_signal_handler(number, signals.put_nowait, number.name)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    # uvicorn does not report when it listens.
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    started()
    stop = asyncio.create_task(signals.get())
    await asyncio.wait({stop, serving}, return_when=asyncio.FIRST_COMPLETED)
    service.stopping = True
    console.print_info("stopping: running requests finish, new ones are refused; a second signal ends them")
    deadline = loop.time() + service.action.shutdown_timeout
    while service.engine.is_busy and signals.empty() and loop.time() < deadline:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(service.engine.close)
    service.close()
    server.should_exit = True
    await serving
