"""A listening socket, and a server on it until it is told to stop."""

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
GRACEFUL_SHUTDOWN_SECONDS = 5  # seconds that connections get to take what is left for them


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket at the address, not listening yet. Raises: ConfigError: it cannot be had."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except sockets.BIND_ERRORS as error:
        found.close()
        raise ConfigError(sockets.explain_bind_error(host, port, error)) from error
    return found


def format_url(listening: socket.socket) -> str:
    """Where clients find the API."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def run(app: Any, listening: socket.socket, service: Service, started: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM, then lets running requests finish; a second signal ends them. Args: started: called once it listens."""
    before = {number: signal.getsignal(number) for number in SIGNALS}  # asyncio leaves the system's own behind
    try:
        asyncio.run(_serve(app, listening, service, started))
    finally:
        for number, handler in before.items():
            with suppress(ValueError):  # not the main thread: nothing was changed
                signal.signal(number, handler)


async def _serve(app: Any, listening: socket.socket, service: Service, started: Callable[[], None]) -> None:
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(settings)
    server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]  # it would raise them again at the end
    told: asyncio.Queue[str] = asyncio.Queue()
    _listen_to_signals(told)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    started()
    stop = asyncio.create_task(told.get())
    await asyncio.wait({stop, serving}, return_when=asyncio.FIRST_COMPLETED)
    await _shut_down(service, told)
    server.should_exit = True
    await serving


async def _shut_down(service: Service, told: "asyncio.Queue[str]") -> None:
    """No new requests; those that run get `action.shutdown_timeout` seconds."""
    service.stopping = True
    console.print_info("stopping: running requests finish, new ones are refused; a second signal ends them")
    end = asyncio.get_running_loop().time() + service.action.shutdown_timeout
    while service.engine.is_busy and told.empty() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(service.engine.close)
    service.close()


def _listen_to_signals(told: "asyncio.Queue[str]") -> None:
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        try:
            loop.add_signal_handler(number, told.put_nowait, number.name)
        except (NotImplementedError, RuntimeError, ValueError):  # not the main thread: the caller owns the signals
            return
