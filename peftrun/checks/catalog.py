"""What must hold of action=list, compare and browse, beyond types; before anything is looked for."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.artifacts import filter_parser
from peftrun.errors import ConfigError
from peftrun.system.packages import explain_not_installed

DEFAULT_ROOT = "outputs"  # need not be there yet
SERVER_PACKAGES = ("fastapi", "uvicorn")


def check_catalog(action: Any) -> Iterator[str]:
    """One line for each thing that is at fault."""
    for root in action.roots:
        if root != DEFAULT_ROOT and not Path(root).expanduser().is_dir():
            yield f"action.roots: there is no folder {root}; name folders that hold runs: type roots=[{DEFAULT_ROOT}]"
    yield from _check_filter(getattr(action, "where", None))
    if action.name == "compare":
        yield from _check_compare(action)
    if action.name == "browse":
        yield from _check_browse(action)


def _check_filter(text: str | None) -> Iterator[str]:
    if text is None or not text.strip():
        return
    try:
        filter_parser.parse_filter(text)
    except ConfigError as fault:
        yield from fault.lines


def _check_compare(action: Any) -> Iterator[str]:
    if action.runs is not None and action.where is not None:
        yield "action.runs: cannot stand beside action.where, which chooses runs itself; omit one"
    elif action.where is None and len(action.runs or ()) < 2:
        given = "is not set" if not action.runs else f"names {action.runs[0]} alone"
        yield (
            f"action.runs {given}; action=compare needs two runs or more: type 'runs=[outputs/train/RUN, outputs/train/RUN2]', "
            "or where='task=sms_spam'"
        )


def _check_browse(action: Any) -> Iterator[str]:
    for package in SERVER_PACKAGES:
        if find_spec(package) is None:
            yield explain_not_installed("action=browse needs package", package)
            return
