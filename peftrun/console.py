"""Terminal output: notes and progress on standard error, results on standard output."""

import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from peftrun.formatting import format_duration
from peftrun.result import RunResult

NOISY = (  # loggers that are set to ERROR
    "transformers", "peft", "trl", "accelerate", "datasets", "torch", "torch.utils._pytree", "torchao", "huggingface_hub",
    "filelock", "httpx", "httpx2",
)  # fmt: skip

_LISTENERS: list[list[str]] = []
IMPORTING = "importing libraries"
LONGEST_SILENCE = 15.0  # seconds without a line
# printed: time of the last line; text: the current activity; since: when it began. Times of time.monotonic, in seconds.
_LAST: dict[str, Any] = {"printed": 0.0, "since": 0.0, "text": ""}
_BARS: list[Progress] = []


def _get_stderr_console() -> Console:
    """The console of the progress bar on the screen, so that lines are printed above it; else a new one."""
    if _BARS and _BARS[-1].live.is_started:
        return _BARS[-1].console
    # Created on each call: tests and sweeps replace sys.stderr. soft_wrap: rich would break a note into several lines.
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_info(text: str) -> None:
    """One line for the user, on standard error."""
    for messages in _LISTENERS:
        messages.append(text)
    now = time.monotonic()
    _LAST.update(printed=now, since=now, text=text)
    _get_stderr_console().print(escape(text))


def set_activity(text: str) -> None:
    """Names the current activity, which `print_heartbeats` prints if it takes long."""
    _LAST.update(since=time.monotonic(), text=text)


@contextmanager
def print_heartbeats() -> Iterator[None]:
    """Without a terminal (no bar, no spinner): prints the current activity and its seconds after each LONGEST_SILENCE."""
    if is_terminal():
        yield
        return
    ended, started = threading.Event(), time.monotonic()
    set_activity("starting")

    def repeat() -> None:
        shown = started
        while not ended.wait(1.0):
            now = time.monotonic()
            if now - max(shown, _LAST["printed"]) >= LONGEST_SILENCE:
                shown = now
                _get_stderr_console().print(
                    escape(f"{_LAST['text']} ... {format_duration(round(now - _LAST['since']))}")
                )

    # A daemon, so that it cannot keep a crashed process alive.
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def capture_messages() -> Iterator[list[str]]:
    """Collects the lines that `print_info` prints inside the block."""
    messages: list[str] = []
    _LISTENERS.append(messages)
    try:
        yield messages
    finally:
        _LISTENERS.remove(messages)


def print_warning(text: str) -> None:
    """One line the user should act on, on standard error."""
    _get_stderr_console().print(f"[yellow]warning:[/] {escape(text)}")


def print_result(text: str) -> None:
    """A result, unformatted, on standard output."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """For when the reader of standard output has stopped early, as `head` does: later prints and Python's flush at exit must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_marked(parts: Iterable[tuple[str, bool]]) -> None:
    """Prints (text, is marked) parts on standard output; marked ones are colored on a terminal, else put between ⟦ and ⟧."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if console.is_terminal and not console.no_color:
        console.print(Text.assemble(*((text, "bold green" if marked else "") for text, marked in parts), end=""))
        return
    # Line ends go behind the closing bracket, so that a mark never spans an empty line.
    bracketed = (
        re.sub(r"\A(.*?)(\n*)\Z", r"⟦\1⟧\2", text, flags=re.DOTALL) if marked else text for text, marked in parts
    )
    print_result("".join(bracketed).removesuffix("\n"))


@contextmanager
def show_import_spinner() -> Iterator[None]:
    """Shows that libraries are being imported, and silences their warnings and loggers from then on."""
    warnings.filterwarnings("ignore")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    console = _get_stderr_console()
    if not console.is_terminal:
        set_activity(IMPORTING)
        yield
        return
    with console.status(IMPORTING):
        yield


def create_progress_bar() -> Progress:
    """A live progress bar: step, loss, tokens per second, time left."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=_get_stderr_console(),
        transient=False,
    )
    _BARS[:] = [bar]
    return bar


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return _get_stderr_console().is_terminal


def print_summary_table(result: RunResult) -> None:
    """The summary and the next commands, on standard output; nothing where an action has printed its results itself."""
    if not result.summary and not result.next_commands:
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if console.is_terminal:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for label, text in result.summary:
            table.add_row(f"[bold]{escape(label)}[/]", escape(text))
        console.print(table)
    else:
        # rich's Table would wrap at 80 columns; a row of a log file is one line.
        width = max((len(label) for label, _ in result.summary), default=0)
        for label, text in result.summary:
            console.print(escape(f"{label:<{width}}  {text}"))
    if result.next_commands:
        console.print("\nnext:")
    for command in result.next_commands:
        console.print(escape(f"  {command}"))


def shorten_path(path: Path) -> str:
    """The path relative to the working directory, if it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
