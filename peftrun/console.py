"""What a person sees: notes and progress on standard error, results on standard output."""

import logging
import os
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

from peftrun.result import RunResult

NOISY = (
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "torch",
    "torch.utils._pytree",
    "torchao",
    "huggingface_hub",
    "filelock",
    "httpx",
    "httpx2",
)

_LISTENERS: list[list[str]] = []
IMPORTING = "importing libraries"
LONGEST_SILENCE = 15.0  # seconds without a line
_LAST: dict[str, Any] = {
    "said": 0.0,
    "at": 0.0,
    "text": "",
}  # when a line was printed last; what the run is at, and since when
_BARS: list[Progress] = []


def _get_stderr_console() -> Console:
    """That of the bar that is on the screen, which then stays below what is said; else a new one."""
    if _BARS and _BARS[-1].live.is_started:
        return _BARS[-1].console
    # Made anew each time: tests and sweeps replace sys.stderr. Not soft-wrapped: one note is one line.
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_info(text: str) -> None:
    """One line for the user, on standard error."""
    for heard in _LISTENERS:
        heard.append(text)
    now = time.monotonic()
    _LAST.update(said=now, at=now, text=text)
    _get_stderr_console().print(escape(text))


def set_activity(text: str) -> None:
    """What takes its time from here on: shown only where it takes long, see `never_silent`."""
    _LAST.update(at=time.monotonic(), text=text)


@contextmanager
def print_heartbeats() -> Iterator[None]:
    """Where no terminal shows a bar or a spinner: what the run is at, with the seconds since, whenever it has been quiet for long."""
    if is_terminal():
        yield
        return
    ended, started = threading.Event(), time.monotonic()
    set_activity("starting")

    def repeat() -> None:
        shown = started
        while not ended.wait(1.0):
            now = time.monotonic()
            if now - max(shown, _LAST["said"]) >= LONGEST_SILENCE:
                shown = now
                _get_stderr_console().print(escape(f"{_LAST['text']} ... {now - _LAST['at']:.0f} s"))

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def capture_messages() -> Iterator[list[str]]:
    """Collects what is said inside, which is said all the same."""
    found: list[str] = []
    _LISTENERS.append(found)
    try:
        yield found
    finally:
        _LISTENERS.remove(found)


def print_warning(text: str) -> None:
    """One line the user should act on, on standard error."""
    _get_stderr_console().print(f"[yellow]warning:[/] {escape(text)}")


def print_result(text: str) -> None:
    """A result, as it is, on standard output; whoever reads there may stop early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_marked(parts: Iterable[tuple[str, bool]]) -> None:
    """A text on standard output in which some parts are marked: by colour on a terminal that has some, else by ⟦ and ⟧."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if console.is_terminal and not console.no_color:
        console.print(Text.assemble(*((text, "bold green" if marked else "") for text, marked in parts), end=""))
        return
    print_result("".join(_bracket_text(text) if marked else text for text, marked in parts).removesuffix("\n"))


def _bracket_text(text: str) -> str:
    line_ends = len(text) - len(text.rstrip("\n"))
    return f"⟦{text.rstrip(chr(10))}⟧" + "\n" * line_ends


@contextmanager
def show_import_spinner() -> Iterator[None]:
    """Shows that libraries are being imported; silences what they would print, now and later."""
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
    """A live bar for a terminal: step, loss, tokens a second, time left."""
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
    """Whether a person watches standard error."""
    return _get_stderr_console().is_terminal


def print_summary_table(result: RunResult) -> None:
    """What came out, where it is, and what to type next, on standard output; nothing where an action has shown all itself."""
    if not result.summary and not result.next_commands:
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        _print_plain_table(console, result)
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for label, text in result.summary:
        table.add_row(f"[bold]{escape(label)}[/]", escape(text))
    console.print(table)
    _print_next_commands(console, result.next_commands)


def _print_plain_table(console: Console, result: RunResult) -> None:
    width = max((len(label) for label, _ in result.summary), default=0)
    for label, text in result.summary:
        console.print(escape(f"{label:<{width}}  {text}"))
    _print_next_commands(console, result.next_commands)


def _print_next_commands(console: Console, commands: list[str]) -> None:
    if commands:
        console.print("\nnext:")
    for command in commands:
        console.print(escape(f"  {command}"))


def format_megabytes(size: int) -> str:
    """A size in bytes as megabytes (10⁶ bytes)."""
    return f"{size / 1e6:.2f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def shorten_path(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def format_figures(values: dict[str, Any]) -> str:
    """Metrics on one line."""
    return " · ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
