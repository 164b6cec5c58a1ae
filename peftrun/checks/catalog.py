"""Rules of action=list, compare and browse, beyond types. Light: checked before folders are scanned."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.artifacts import filter_parser
from peftrun.errors import ConfigError
from peftrun.system.packages import explain_not_installed

DEFAULT_ROOT = "outputs"  # may be missing, before the first run
SERVER_PACKAGES = ("fastapi", "uvicorn")


def check_catalog(action: Any) -> Iterator[str]:
    """One line for each problem."""
    for root in action.dirs:
        if root != DEFAULT_ROOT and not Path(root).expanduser().is_dir():
            yield f"action.dirs: there is no folder {root}; name folders with runs: type dirs=[{DEFAULT_ROOT}]"
    condition = getattr(action, "where", None)
    if condition is not None and condition.strip():
        try:
            filter_parser.parse_filter(condition)
        except ConfigError as error:
            yield from error.lines
    if action.name == "compare" and action.runs is not None and action.where is not None:
        yield "action.runs: cannot be combined with action.where, which selects runs itself; omit one"
    elif action.name == "compare" and action.where is None and len(action.runs or ()) < 2:
        fault = "is not set" if not action.runs else f"names only {action.runs[0]}"
        yield (
            f"action.runs {fault}; action=compare needs two runs or more: type 'runs=[outputs/train/RUN, outputs/train/RUN2]', "
            "or where='task=sms_spam'"
        )
    if action.name == "browse":
        missing = next((package for package in SERVER_PACKAGES if find_spec(package) is None), None)
        if missing:
            yield explain_not_installed("action=browse needs package", missing)
