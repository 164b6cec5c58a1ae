"""Functions in Python files of the user, `FILE.py:FUNCTION` in task.metrics and task.objective.rewards: found, checked and loaded. Light.

Only `load_function` runs a file; everything else reads its text.
"""

import ast
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from peftrun.config import usage
from peftrun.config.schema.functions import FUNCTION_REFERENCE
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import ConfigError
from peftrun.system.packages import find_package_dir

PACKAGE = "pkg://"  # before a file of an installed package: pkg://PACKAGE/FILE.py:FUNCTION
REFERENCES = (("metrics",), ("objective", "rewards"))  # keys below `task` that may hold references
CALLERS = ("train", "evaluate", "plan", "preview")  # actions that call the functions, or check a training; reload may
MODULE = "peftrun_function_file_"  # begins the name of a loaded file in sys.modules
STAR = "*"  # of `from … import *`: which names a file defines is then known only when it runs


def is_reference(text: str) -> bool:
    """Whether this is `FILE.py:FUNCTION`, and not the name of a built-in reward or metric."""
    return FUNCTION_REFERENCE.fullmatch(text) is not None


def get_name(text: str) -> str:
    """The name under which a reward or metric is reported: of a reference that of its function."""
    return text.rpartition(":")[2] if is_reference(text) else text


def are_called(action: Any) -> bool:
    """Whether an action calls the functions of its task."""
    return action.name in CALLERS or bool(getattr(action, "evaluate", False))


def list_references(task: TaskSpec) -> list[tuple[str, str]]:
    """(full key, reference) of every function of the user that the task names. Does not count as reading the keys."""
    task = usage.strip_tracking(task)
    lists = {"task.metrics": task.metrics, "task.objective.rewards": getattr(task.objective, "rewards", None)}
    return [(key, text) for key, texts in lists.items() for text in texts or () if is_reference(text)]


def list_files(task: TaskSpec) -> dict[str, Path]:
    """`KEY=FILE` → file, for every file of the user's functions; a missing one too."""
    located = ((key, *_split(text)) for key, text in list_references(task))
    return {f"{key}={spelled}": file for key, spelled, file in located if file is not None}


def find_file(text: str) -> Path | None:
    """The file of a reference; None if its package is not installed."""
    return _split(text)[1]


def make_absolute(values: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """Resolved values in which every reference that was typed has an absolute path; those to files of a package stay.

    Raises: ConfigError: a reference comes from a config file and names no file of a package: whose folder it would be relative to is not
        known, and a shared option must carry the code that it runs.
    """
    for names in REFERENCES:
        owner: Any = values.get("task")
        for name in names[:-1]:
            owner = owner.get(name) if isinstance(owner, dict) else None
        items = owner.get(names[-1]) if isinstance(owner, dict) else None
        if isinstance(items, list):
            key = ".".join(("task", *names))
            owner[names[-1]] = [_resolve(key, item, typed) if isinstance(item, str) else item for item in items]
    return values


def _resolve(key: str, text: str, typed: Sequence[str]) -> str:
    if not is_reference(text) or text.startswith(PACKAGE):
        return text
    # Hydra hands the overrides of a sweep on with a backslash before each colon, space and so on.
    if not any(text in override.replace("\\", "") for override in typed):
        raise ConfigError(
            f"{key}={text}: is set by a config file, which may only name a Python file of an installed package; "
            f"write {PACKAGE}PACKAGE/FILE.py:{get_name(text)} there, or type {key}=[{text}]"
        )
    return f"{Path(text.rpartition(':')[0]).expanduser().absolute()}:{get_name(text)}"


def _split(text: str) -> tuple[str, Path | None]:
    """The file of a reference, as it is spelled and as a path (None if its package is not installed)."""
    spelled = text.rpartition(":")[0]
    if not spelled.startswith(PACKAGE):
        return spelled, Path(spelled).expanduser()
    package, _, path = spelled.removeprefix(PACKAGE).partition("/")
    folder = find_package_dir(package)
    return spelled, folder / path if folder else None


def list_names(file: Path) -> set[str]:
    """The names that a Python file defines. Raises: SyntaxError, ValueError: it is not Python. OSError."""
    return set(_iter_names(ast.parse(file.read_bytes(), str(file))))


def _iter_names(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        # The names inside of a function are its own; those below `if` and `try` are the file's.
        is_scope = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in [statement] if is_scope else ast.walk(statement):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.alias):
                yield (node.asname or node.name).partition(".")[0]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def load_function(key: str, text: str) -> Callable[..., Any]:
    """The function of a reference. Its file runs once a run of peftrun, see `forget_modules`.

    Raises: ConfigError: the file cannot be run, or what it defines under this name cannot be called.
    """
    file = find_file(text)
    if file is None or not file.is_file():
        raise ConfigError(f"{key}={text}: there is no such file; name a Python file")
    name = MODULE + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    module = sys.modules.get(name) or _run_file(f"{key}={text}", name, file)
    function = getattr(module, get_name(text), None)
    if not callable(function):
        raise ConfigError(f"{key}={text}: {get_name(text)} is no function in this file; define it there")
    return function


def _run_file(label: str, name: str, file: Path) -> ModuleType:
    spec = spec_from_file_location(name, file)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        # Compiled from these bytes: Python's own cache of compiled files would miss a change within a second.
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(
            f"{label}: cannot be loaded: {describe_error(error, file)}; fix it there (it may import installed packages, not its neighbors)"
        ) from error
    return module


def forget_modules() -> None:
    """Forgets the files that an earlier run of this process loaded: they may have changed."""
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]


def describe_error(error: BaseException, file: Path | None) -> str:
    """`ValueError: message (FILE.py, line 3)`, on one line: the last line of this file in the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    where = f" ({file.name}, line {lines[-1]})" if file and lines else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"
