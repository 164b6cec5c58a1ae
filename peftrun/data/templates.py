"""Templates that name columns: `{text}`; `{input?}`, which may be empty; `{sentences.abstract}`, a field of another column."""

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
    """Whether the row has this column, or the nested field that a dotted name stands for."""
    parent, _, last = column.rpartition(".")
    return column in row or last in (_get_nested(row, parent) or {})


def get_sole_column(template: str | None) -> str | None:
    """The column of a template that is only a column; None of any other template."""
    fields = _list_fields(template)
    return list_columns(template)[0] if len(fields) == 1 and template == f"{{{fields[0]}}}" else None


def get_column_value(row: dict[str, Any], column: str) -> Any:
    """The value of a column, or of the nested field that a dotted name stands for."""
    return row[column] if column in row else _get_nested(row, column)


def fill_template(where: str, template: str | None, values: dict[str, Any]) -> str | None:
    """The template with the values of its columns; None without one. Unlike str.format, it reaches no attributes or indices of values.

    Raises: DataError: a required column is empty, or a value has no text form (see `format_cell`).
    """
    if template is None:
        return None
    parts: list[str] = []  # alternating: literal text at even indices, values of columns at odd ones
    for text, field in _parse_template(template):
        parts.append(text)
        if field is not None:
            column = field.removesuffix(OPTIONAL_MARK)
            value = format_column_value(where, column, get_column_value(values, column))
            if not value.strip() and not field.endswith(OPTIONAL_MARK):
                raise DataError(
                    f"{where}: column {column} is empty; fill it or remove the row (or write {{{column}?}}: it may be empty)"
                )
            parts.append(value)
    _strip_empty_edges(parts, range(len(parts)))
    _strip_empty_edges(parts, range(len(parts) - 1, -1, -1))
    return "".join(parts)


def _strip_empty_edges(parts: list[str], indices: range) -> None:
    """Strips literal whitespace at one end of the parts, if the column there is empty. Values keep their whitespace."""
    values = [index for index in indices if index % 2]
    if not values or parts[values[0]].strip():
        return
    for index in indices:
        literal = index % 2 == 0
        if parts[index].strip() and not literal:
            return
        parts[index] = (parts[index].lstrip() if indices.step > 0 else parts[index].rstrip()) if literal else ""
        if parts[index]:
            return


def format_column_value(where: str, column: str, value: Any) -> str:
    """A column's value as text, empty for None. Raises: DataError: it has no text form, such as bytes."""
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
    """(literal text, field after it or None); cached, since a template is filled in for every row."""
    return tuple((text, field) for text, field, _, _ in Formatter().parse(template))


def _get_nested(row: dict[str, Any], column: str) -> Any:
    """The field that a dotted name stands for; None if an object or the field is missing."""
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
