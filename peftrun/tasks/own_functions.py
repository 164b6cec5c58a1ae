"""Calls rewards and metrics in Python files of the user, and checks what they return: a bad one is one line that names the row."""

import asyncio
import inspect
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftrun.artifacts import function_files
from peftrun.config.schema.run import TaskSpec
from peftrun.errors import ConfigError
from peftrun.system.random_state import keep_random_state
from peftrun.tasks.messages import ASSISTANT

METRICS, REWARDS = "task.metrics", "task.objective.rewards"
METRIC_NAME = re.compile(r"[^\s.]+")  # of what a metric returns: it is part of a key in tables of runs


@dataclass(frozen=True)
class Completions:
    """Answers to reward; all lists have one item for each.

    Attributes:
        ids: token ids of the answers. true_answers: by task.completion_template, empty without one.
        columns, prompts: of the source row, as JSON; only for functions of the user, as `wheres`.
        extras: further arguments that TRL passes in training: trainer_state, log_extra, log_metric.
    """

    texts: list[str]
    ids: list[list[int]]
    true_answers: list[str]
    columns: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)

    def select(self, part: slice) -> "Completions":
        """Some of them."""
        lists = {name: value[part] for name, value in vars(self).items() if name != "extras"}
        return Completions(**lists, extras=self.extras)


def load_functions(task: TaskSpec) -> None:
    """Loads all functions of a task, so that a broken one is reported before the base model is loaded. Raises: ConfigError."""
    for key, text in function_files.list_references(task):
        function_files.load_function(key, text)


def compute_rewards(text: str, completions: Completions) -> list[float]:
    """The reward of each completion by a function of the user, called as TRL calls reward functions.

    Raises: ConfigError: the function raises, or does not return a finite number for each completion.
    """
    function, label = function_files.load_function(REWARDS, text), f"{REWARDS}={text}"

    def call(part: slice) -> Any:
        return _call(label, function, _build_reward_arguments(completions.select(part)))

    returned = _call_or_explain(label, text, call, completions.wheres)
    returned = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(returned, list | tuple):
        raise ConfigError(f"{label}: returned {_describe(returned)}; return a list of numbers, one for each completion")
    if len(returned) != len(completions.texts):
        raise ConfigError(
            f"{label}: returned {len(returned)} rewards for {len(completions.texts)} completions; return one for each"
        )
    return [
        _to_number(f"{label}: returned", value, f" for {where}")
        for value, where in zip(returned, completions.wheres, strict=True)
    ]


def _build_reward_arguments(completions: Completions) -> dict[str, Any]:
    """Arguments in TRL's form: prompts and completions are messages if the prompts of the data are, else texts; columns are lists."""
    rows, prompts = list(map(json.loads, completions.columns)), list(map(json.loads, completions.prompts))
    answers = [
        text if isinstance(prompt, str) else [{"role": ASSISTANT, "content": text}]
        for text, prompt in zip(completions.texts, prompts, strict=True)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        "answer": completions.true_answers,
        **{name: [row.get(name) for row in rows] for name in names},
        # TRL has these only when it is training.
        "trainer_state": None,
        "log_extra": _ignore,
        "log_metric": _ignore,
        **completions.extras,
        "prompts": prompts,
        "completions": answers,
        "completion_ids": completions.ids,
        "rows": rows,
    }


def _ignore(*_: Any) -> None:
    """Stands for TRL's log_extra and log_metric in an evaluation."""


def compute_metric(text: str, predictions: list[str], references: list[str], rows: Sequence[Any]) -> dict[str, float]:
    """Name → value of a metric of the user: its function's name, or the keys of the dict that it returns.

    Args: rows: task rows with `columns` and `where`.
    Raises: ConfigError: the function raises, or returns no finite number.
    """
    function, label = function_files.load_function(METRICS, text), f"{METRICS}={text}"
    lists = {"predictions": predictions, "references": references, "rows": [json.loads(row.columns) for row in rows]}

    def call(part: slice) -> Any:
        return _call(label, function, {name: values[part] for name, values in lists.items()})

    with keep_random_state():
        returned = _call_or_explain(label, text, call, [row.where for row in rows])
    if not isinstance(returned, dict):
        return {function_files.get_name(text): _to_number(f"{label}: returned", returned)}
    if not returned or not all(isinstance(name, str) and METRIC_NAME.fullmatch(name) for name in returned):
        raise ConfigError(f"{label}: returned {_describe(returned)}; return a number, or a dict from name to number")
    return {name: _to_number(f"{label}: returned", value, f" as {name}") for name, value in returned.items()}


def _call_or_explain(label: str, text: str, call: Callable[[slice], Any], wheres: Sequence[str]) -> Any:
    """What `call` returns for all rows. Raises: ConfigError: it raises; with the first row for which it does so alone."""
    try:
        return call(slice(None))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        where = _find_row(call, wheres)
        described = function_files.describe_error(error, function_files.find_file(text))
        raise ConfigError(f"{label}: raised {described} {where}; fix the function or the row") from error


def _find_row(call: Callable[[slice], Any], wheres: Sequence[str]) -> str:
    for index, where in enumerate(wheres):
        try:
            call(slice(index, index + 1))
        except (Exception, SystemExit):
            return f"for {where}"
    return f"for {len(wheres)} rows together, and for none alone"


def _call(label: str, function: Callable[..., Any], available: dict[str, Any]) -> Any:
    """What the function returns for those of the arguments that it takes; of an `async` one the result."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [
        parameter for parameter in parameters if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    unknown = [
        parameter.name
        for parameter in named
        if parameter.kind is parameter.POSITIONAL_ONLY
        or (parameter.name not in available and parameter.default is parameter.empty)
    ]
    if unknown:
        raise ConfigError(
            f"{label}: takes the argument {unknown[0]}, and gets {', '.join(available)} by name; rename it, or give it a default"
        )
    arguments = available if takes_all else {p.name: available[p.name] for p in named if p.name in available}
    returned = function(**arguments)
    return asyncio.run(_await(returned)) if inspect.isawaitable(returned) else returned


async def _await(value: Any) -> Any:
    return await value


def _to_number(returned: str, value: Any, which: str = "") -> float:
    """A finite number, of Python, NumPy or torch. Raises: ConfigError: it is none. Args: returned, which: parts of the message."""
    number = value
    if hasattr(value, "item"):
        try:
            number = value.item()
        except (RuntimeError, TypeError, ValueError):  # an array of several numbers, or of none
            number = None
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{returned} {_describe(value)}{which}; return a finite number")
    return float(number)


def _describe(value: Any) -> str:
    """A returned value for a message, with its type where the value does not say it."""
    text = " ".join(repr(value).split())
    short = text if len(text) <= 60 else f"{text[:57]}…"
    return short if value is None or isinstance(value, float) else f"{short} ({type(value).__name__})"
