"""The one spelling that a value has as text."""

import json
from datetime import date, time
from decimal import Decimal
from typing import Any


class VerbatimNumber(float):
    """A number that Python would spell otherwise than the file does: `1.50`, `1e5`, `-0`, one of a thousand digits."""

    __slots__ = ("spelling",)
    spelling: str

    def __new__(cls, spelling: str) -> "VerbatimNumber":
        """The number that is spelled so."""
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __str__(self) -> str:
        """As the file spells it."""
        return self.spelling


def format_cell(value: Any) -> str:
    """A text as it is, a list of texts with blanks between, a date or a time in ISO 8601; anything else as JSON writes it. Empty for none.

    Raises: TypeError: it has no spelling, such as bytes.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    return value.isoformat() if isinstance(value, date | time) else serialize_json(value)


def serialize_json(value: Any) -> str:
    """JSON in which every number is spelled as the file spells it. Raises: TypeError: see `spelled`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{serialize_json(str(key))}: {serialize_json(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(serialize_json, value)) + "]"
    if isinstance(value, VerbatimNumber):
        return value.spelling
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | time):
        value = value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=_raise_type_error)


def _raise_type_error(value: Any) -> None:
    raise TypeError(type(value).__name__)
