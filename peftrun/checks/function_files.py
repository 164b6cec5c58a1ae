"""Rules for rewards and metrics in Python files of the user. Light: files are read, never run."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftrun.artifacts import function_files
from peftrun.checks.metric_names import METRICS
from peftrun.checks.unknown_keys import find_close_match
from peftrun.config.paths import no_file
from peftrun.config.schema.run import TaskSpec
from peftrun.system.packages import explain_not_installed

Lines = Iterator[str]


def check_references(task: TaskSpec, action: Any) -> Lines:
    """Each file exists and defines its function, if the action calls it."""
    if not function_files.are_called(action):
        return
    for key, text in function_files.list_references(task):
        file = function_files.find_file(text)
        if file is None:
            package = text.removeprefix(function_files.PACKAGE).partition("/")[0]
            yield explain_not_installed(f"{key}={text} needs package", package)
        elif not file.is_file():
            yield f"{key}={text}: {no_file(str(file))}; name a Python file: {key}=[FILE.py:FUNCTION]"
        else:
            yield from _check_function(key, text, file)


def _check_function(key: str, text: str, file: Path) -> Lines:
    name = function_files.get_name(text)
    try:
        names = function_files.list_names(file)
    except (SyntaxError, ValueError) as error:
        yield f"{key}={text}: is not Python: {function_files.describe_error(error, file)}; fix it there"
        return
    if name not in names and function_files.STAR not in names:
        nearest = find_close_match(name, sorted(names))
        advice = (
            f"did you mean {nearest}? type {key}=[{text.rpartition(':')[0]}:{nearest}]"
            if nearest
            else "define it there"
        )
        yield f"{key}={text}: this file has no function {name}; {advice}"


def check_names(task: TaskSpec) -> Lines:
    """No two metrics, or two rewards, are reported under one name."""
    built_in = METRICS.get(task.type, ())
    for key, texts in {
        "task.metrics": task.metrics,
        "task.objective.rewards": getattr(task.objective, "rewards", None),
    }.items():
        counts = Counter(map(function_files.get_name, texts or ()))
        for name, count in counts.items():
            if count > 1:
                yield f"{key}=[{','.join(texts or ())}]: two of them are called {name}; rename one function"
            elif name in built_in:
                yield f"{key}=[{','.join(texts or ())}]: {name} is a metric of task.type={task.type} already; rename the function"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("task", "action"), check_references),
    (("task",), check_names),
]
