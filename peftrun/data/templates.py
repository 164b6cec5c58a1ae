"""Templates that name columns: `{text}`; `{input?}`, which may be empty; `{sentences.abstract}`, which lies in another column."""

from functools import cache
from string import Formatter
from typing import Any

from peftrun.data.cell_text import format_cell
from peftrun.errors import DataError

OPTIONAL_MARK = "?"


def list_columns(template: str | None) -> list[str]:
    """The columns that a template names."""
    return [field.removesuffix(OPTIONAL_MARK) for field in _list_fields(template)]


def has_column(row: dict[str, Any], column: str) -> bool:
    """Whether the row has this column, or objects that lead to it."""
    above, _, last = column.rpartition(".")
    return column in row or last in (_get_nested(row, above) or {})


def get_sole_column(template: str | None) -> str | None:
    """The column that is all of a template; None where there is more to it."""
    fields = _list_fields(template)
    return list_columns(template)[0] if len(fields) == 1 and template == f"{{{fields[0]}}}" else None


def get_column_value(row: dict[str, Any], column: str) -> Any:
    """What a column holds, or what its dotted name leads to."""
    return row[column] if column in row else _get_nested(row, column)


def fill_template(where: str, template: str | None, values: dict[str, Any]) -> str | None:
    """The template with its columns put in; None if there is none. Only plain names: no attribute or index reaches the values.

    Raises: DataError: a column that must not be is empty, or holds what has no spelling (`values.spelled`).
    """
    if template is None:
        return None
    parts: list[str] = []  # the template's own text and what a column holds, in turn
    for text, field in _parse_template(template):
        parts += [text] if field is None else [text, _fill_field(where, field, values)]
    _strip_empty_edges(parts, range(len(parts)))
    _strip_empty_edges(parts, range(len(parts) - 1, -1, -1))
    return "".join(parts)


def _strip_empty_edges(parts: list[str], places: range) -> None:
    """Takes blanks of the template's own away where it begins, or ends, with a column that is empty."""
    values = [place for place in places if place % 2]
    if not values or parts[values[0]].strip():
        return
    for place in places:
        own = place % 2 == 0
        if parts[place].strip() and not own:
            return
        parts[place] = (parts[place].lstrip() if places.step > 0 else parts[place].rstrip()) if own else ""
        if parts[place]:
            return


def format_column_value(where: str, column: str, value: Any) -> str:
    """A column's value as text, empty for none. Raises: DataError: it has no spelling, such as bytes."""
    try:
        return format_cell(value)
    except TypeError as error:
        raise DataError(
            f"{where}: column {column} holds {error}, which has no spelling as text; name another column, or write it as text"
        ) from error


def _list_fields(template: str | None) -> list[str]:
    return [field for _, field in _parse_template(template or "") if field is not None]


@cache
def _parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """Each text with the field after it; kept, since a template is filled in for every row."""
    return tuple((text, field) for text, field, _, _ in Formatter().parse(template))


def _fill_field(where: str, field: str, values: dict[str, Any]) -> str:
    column = field.removesuffix(OPTIONAL_MARK)
    text = format_column_value(where, column, get_column_value(values, column))
    if not text.strip() and not field.endswith(OPTIONAL_MARK):
        raise DataError(
            f"{where}: column {column} is empty; fill it or remove the row (or write {{{column}?}}: it may be empty)"
        )
    return text


def _get_nested(row: dict[str, Any], column: str) -> Any:
    """What a dotted name leads to through objects; None where it leads nowhere."""
    found: Any = row
    for step in column.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found
