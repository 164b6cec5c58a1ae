"""Whether a run meets an expression of `where`."""

import operator
from collections.abc import Callable, Sequence
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from peftrun.artifacts.filter_parser import BoolOp, Condition, Expression, Not, list_conditions
from peftrun.errors import ConfigError
from peftrun.results.catalog.columns import Columns, format_value
from peftrun.results.catalog.index import IndexedRun

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
STATUSES = ("completed", "running", "dead", "failed", "interrupted", "stopped", "unreadable", "rejected")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
WORDS = {"null": None, "true": True, "false": False}
RunPredicate = Callable[[IndexedRun], bool]


def compile_filter(
    expression: Expression, columns: Columns, runs: Sequence[IndexedRun], key: str = "action.where"
) -> RunPredicate:
    """What tells whether a run meets it.

    Raises: ConfigError: a column is not there; or one that holds nothing but numbers is put in order with a word.
    """
    for one in list_conditions(expression):
        _check_condition(one, columns, runs, key)
    return _compile_expression(expression, columns, key)


def _compile_expression(expression: Expression, columns: Columns, key: str) -> RunPredicate:
    if isinstance(expression, Condition):
        value, meets = columns.value(expression.column, key), _compile_condition(expression)
        return lambda run: meets(value(run))
    if isinstance(expression, Not):
        inner = _compile_expression(expression.part, columns, key)
        return lambda run: not inner(run)
    assert isinstance(expression, BoolOp)
    parts, holds = (
        [_compile_expression(part, columns, key) for part in expression.parts],
        all if expression.joint == "and" else any,
    )
    return lambda run: holds(part(run) for part in parts)


def _check_condition(one: Condition, columns: Columns, runs: Sequence[IndexedRun], key: str) -> None:
    value = columns.value(one.column, key)
    if one.column == "status" and one.operator in ("=", "!="):
        _check_status(one, key)
    if one.operator == "~" or (one.operator in ("=", "!=") and not _is_date(one)):
        return
    if _is_date(one):
        if one.operator in ORDER and not _is_iso_date(one.value):
            raise ConfigError(
                f"{key}: {one.column}{one.operator}{one.value}: is no date; type {one.column}{one.operator}2026-11-01"
            )
        return
    found = [item for item in map(value, runs) if item is not None]
    if found and all(_is_number(item) for item in found) and parse_number(one.value) is None:
        raise ConfigError(
            f"{key}: {one.column}{one.operator}{one.value}: {one.column} holds numbers; "
            f"type {one.column}{one.operator}{format_value(found[0])}"
        )


def _check_status(one: Condition, key: str) -> None:
    if one.value in STATUSES or (one.value.lower() in WORDS and not one.quoted):
        return
    near = get_close_matches(one.value.lower(), STATUSES, n=1) or STATUSES
    raise ConfigError(
        f"{key}: status{one.operator}{one.value}: a status is one of {', '.join(STATUSES)}; type status{one.operator}{near[0]}"
    )


def _is_date(one: Condition) -> bool:
    return one.column == "date"


def _is_iso_date(value: str) -> bool:
    text = value.replace(" ", "T")
    full = f"{text}-01" if len(text) == 7 else f"{text}:00" if len(text) == 13 else text
    try:
        datetime.fromisoformat(full if len(text) != 4 else f"{text}-01-01")
    except ValueError:
        return False
    return True


def parse_number(value: str) -> float | None:
    """The number that a word says, KB, MB and GB counted in; None: it says none."""
    scale = UNITS.get(value[-2:].upper(), 1)
    try:
        found = float(value[:-2] if scale > 1 else value)
    except ValueError:
        return None
    return found * scale


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compile_condition(one: Condition) -> Callable[[Any], bool]:
    if one.operator == "!=":
        equal = _compile_equality(one)
        return lambda value: not equal(value)
    if one.operator == "=":
        return _compile_equality(one)
    if one.operator == "~":
        return _compile_pattern(one.value.lower())
    return _compile_order(one)


def _compile_equality(one: Condition) -> Callable[[Any], bool]:
    """A list is equal to each of what it holds, and to itself as it is written; a date to all that begin so."""
    words = None if one.quoted else one.value.lower()
    if words in WORDS:
        wanted = WORDS[words]
        return lambda value: value is wanted or (isinstance(value, list) and wanted in value)
    if _is_date(one):
        return lambda value: isinstance(value, str) and value.startswith(one.value.replace("T", " "))
    amount = parse_number(one.value)

    def equal(value: Any) -> bool:
        if isinstance(value, list):
            return format_value(value) == one.value or any(map(equal, value))
        if _is_number(value):
            return amount is not None and value == amount
        return value is not None and not isinstance(value, bool) and str(value) == one.value

    return equal


def _compile_pattern(wanted: str) -> Callable[[Any], bool]:
    """Great and small letters are the same. With * or ? in it, the whole value is as that says; else it is somewhere in it."""
    if "*" in wanted or "?" in wanted:
        return lambda value: (
            value is not None and any(fnmatchcase(one.lower(), wanted) for one in _collect_texts(value))
        )
    return lambda value: value is not None and any(wanted in one.lower() for one in _collect_texts(value))


def _collect_texts(value: Any) -> list[str]:
    return [format_value(value), *(map(format_value, value) if isinstance(value, list) else ())]


def _compile_order(one: Condition) -> Callable[[Any], bool]:
    compare, amount = ORDER[one.operator], parse_number(one.value)
    if _is_date(one):  # a day is compared by day, a minute by minute
        wanted = one.value.replace("T", " ")
        return lambda value: isinstance(value, str) and compare(value[: len(wanted)], wanted)

    def ordered(value: Any) -> bool:
        if _is_number(value):
            return amount is not None and compare(value, amount)
        return isinstance(value, str) and compare(value, one.value)

    return ordered
