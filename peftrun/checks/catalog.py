"""What must hold of action=list, compare and browse, beyond types; before anything is looked for."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.artifacts import filter_parser
from peftrun.errors import ConfigError
from peftrun.system.packages import not_installed

USUAL = "outputs"  # need not be there yet
SERVERS = ("fastapi", "uvicorn")


def problems(action: Any) -> Iterator[str]:
    """One line for each thing that is at fault."""
    for root in action.roots:
        if root != USUAL and not Path(root).expanduser().is_dir():
            yield f"action.roots: there is no folder {root}; name folders that hold runs: type roots=[{USUAL}]"
    yield from _expression(getattr(action, "where", None))
    if action.name == "compare":
        yield from _compared(action)
    if action.name == "browse":
        yield from _served(action)


def _expression(text: str | None) -> Iterator[str]:
    if text is None or not text.strip():
        return
    try:
        filter_parser.parsed(text)
    except ConfigError as fault:
        yield from fault.lines


def _compared(action: Any) -> Iterator[str]:
    if action.runs is not None and action.where is not None:
        yield "action.runs: cannot stand beside action.where, which chooses runs itself; omit one"
    elif action.where is None and len(action.runs or ()) < 2:
        given = "is not set" if not action.runs else f"names {action.runs[0]} alone"
        yield (
            f"action.runs {given}; action=compare needs two runs or more: type 'runs=[outputs/train/RUN, outputs/train/RUN2]', "
            "or where='task=sms_spam'"
        )


def _served(action: Any) -> Iterator[str]:
    for package in SERVERS:
        if find_spec(package) is None:
            yield not_installed("action=browse needs package", package)
            return
