"""Evaluate a `where` expression on runs."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from peftrun.artifacts.filter_parser import BoolOp, Condition, Expression, Not, list_conditions
from peftrun.config import migrations
from peftrun.config.values import report_upgrades
from peftrun.errors import ConfigError
from peftrun.formatting import is_number, parse_bytes
from peftrun.results.catalog.columns import Columns, format_table_value
from peftrun.results.catalog.index import IndexedRun

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
STATUSES = ("completed", "running", "dead", "failed", "interrupted", "stopped", "unreadable", "rejected")
OPTION_COLUMNS = {"task": "task", "method": "lora"}  # column → the group whose option it holds
CONSTANTS = {"null": None, "true": True, "false": False}
RunPredicate = Callable[[IndexedRun], bool]


def compile_filter(
    expression: Expression, columns: Columns, runs: Sequence[IndexedRun], key: str = "action.where"
) -> RunPredicate:
    """Predicate that says whether a run matches the expression.

    Raises: ConfigError: a column does not exist; or a column that holds only numbers is compared with a word.
    """
    for condition in list_conditions(expression):
        _check_condition(condition, columns, runs, key)
    return _compile_expression(expression, columns, key)


def _compile_expression(expression: Expression, columns: Columns, key: str) -> RunPredicate:
    if isinstance(expression, Condition):
        read_value, matches = columns.make_reader(expression.column, key), _compile_condition(expression)
        return lambda run: matches(read_value(run))
    if isinstance(expression, Not):
        inner = _compile_expression(expression.part, columns, key)
        return lambda run: not inner(run)
    assert isinstance(expression, BoolOp)
    predicates = [_compile_expression(operand, columns, key) for operand in expression.parts]
    combine = all if expression.joint == "and" else any
    return lambda run: combine(matches(run) for matches in predicates)


def _check_condition(condition: Condition, columns: Columns, runs: Sequence[IndexedRun], key: str) -> None:
    column, sign, value = condition.column, condition.operator, condition.value
    read_value = columns.make_reader(column, key)  # raises where there is no such column
    if column == "status" and sign in ("=", "!="):
        is_constant = value.lower() in CONSTANTS and not condition.quoted
        if value not in STATUSES and not is_constant:
            nearest = get_close_matches(value.lower(), STATUSES, n=1) or STATUSES
            raise ConfigError(
                f"{key}: status{sign}{value}: a status is one of {', '.join(STATUSES)}; type status{sign}{nearest[0]}"
            )
    if column == "date":
        if sign in ORDER and not _is_iso_date(value):
            raise ConfigError(f"{key}: {column}{sign}{value}: is no date; type {column}{sign}2026-11-01")
        return
    if sign not in ORDER:
        return
    values = [item for item in map(read_value, runs) if item is not None]
    if values and all(map(is_number, values)) and parse_number(value) is None:
        raise ConfigError(
            f"{key}: {column}{sign}{value}: {column} holds numbers; type {column}{sign}{format_table_value(values[0])}"
        )


def _is_iso_date(value: str) -> bool:
    text = value.replace(" ", "T")
    # fromisoformat needs at least a day, and minutes with an hour: YYYY, YYYY-MM and YYYY-MM-DDTHH are completed.
    suffix = {4: "-01-01", 7: "-01", 13: ":00"}.get(len(text), "")
    try:
        datetime.fromisoformat(text + suffix)
    except ValueError:
        return False
    return True


def parse_number(value: str) -> float | None:
    """The number that a text spells, or the bytes of a size such as 4MB; None: it is neither."""
    try:
        return float(value)
    except ValueError:
        return parse_bytes(value)


def _compile_condition(condition: Condition) -> Callable[[Any], bool]:
    if condition.operator == "!=":
        equals = _compile_equality(condition)
        return lambda value: not equals(value)
    if condition.operator == "=":
        return _compile_equality(condition)
    if condition.operator == "~":
        pattern = condition.value.lower()
        # `*` and `?` make it a glob over the whole value; other patterns may match anywhere in it.
        is_glob = "*" in pattern or "?" in pattern

        def matches(value: Any) -> bool:
            items = [] if value is None else [value, *(value if isinstance(value, list) else ())]
            texts = [format_table_value(item).lower() for item in items]  # of a list, also each of its items
            return any(fnmatchcase(text, pattern) if is_glob else pattern in text for text in texts)

        return matches
    compare, number = ORDER[condition.operator], parse_number(condition.value)
    if condition.column == "date":
        # Cut to the precision that was typed: `date>2026-11-25` starts with the next day, not the next second.
        bound = condition.value.replace("T", " ")
        return lambda value: isinstance(value, str) and compare(value[: len(bound)], bound)

    def is_in_order(value: Any) -> bool:
        if is_number(value):
            return number is not None and compare(value, number)
        return isinstance(value, str) and compare(value, condition.value)

    return is_in_order


def _compile_equality(condition: Condition) -> Callable[[Any], bool]:
    """A list equals each of its items, and itself as text; a date equals every date that it is a prefix of."""
    word = None if condition.quoted else condition.value.lower()
    if word in CONSTANTS:
        constant = CONSTANTS[word]
        # Compared by identity: 1 == True would otherwise match `true`.
        return lambda value: value is constant or (isinstance(value, list) and constant in value)
    if condition.column == "date":
        return lambda value: isinstance(value, str) and value.startswith(condition.value.replace("T", " "))
    group = OPTION_COLUMNS.get(condition.column, "")
    if (group, condition.value) in migrations.RENAMED_OPTIONS:
        report_upgrades([migrations.format_renamed_option(group, condition.value)])
        condition = replace(condition, value=migrations.rename_option(group, condition.value))
    number = parse_number(condition.value)

    def equals(value: Any) -> bool:
        if isinstance(value, list):
            return format_table_value(value) == condition.value or any(map(equals, value))
        if is_number(value):
            return number is not None and value == number
        return value is not None and not isinstance(value, bool) and str(value) == condition.value

    return equals
