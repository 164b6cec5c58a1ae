"""Values of rows as text, one spelling each."""

import json
from datetime import date, time
from decimal import Decimal
from typing import Any


class VerbatimNumber(float):
    """A number that Python would spell differently from the file: `1.50`, `1e5`, `-0`, one of a thousand digits."""

    __slots__ = ("spelling",)
    spelling: str

    def __new__(cls, spelling: str) -> "VerbatimNumber":
        """Parses and keeps the spelling."""
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __str__(self) -> str:
        """As spelled in the file."""
        return self.spelling


def format_cell(value: Any) -> str:
    """A text as it is, a list of texts joined with spaces, a date or time in ISO 8601, anything else as JSON; empty for None.

    Raises: TypeError: the value has no text form, such as bytes.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return value.isoformat() if isinstance(value, date | time) else serialize_json(value)


def serialize_json(value: Any) -> str:
    """JSON with every number as it is spelled in the file. Raises: TypeError: see `format_cell`."""
    # By hand, since json.dumps writes a subclass of float with float.__repr__.
    if isinstance(value, dict):
        items = (f"{serialize_json(str(key))}: {serialize_json(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(serialize_json, value)) + "]"
    if isinstance(value, VerbatimNumber):
        return value.spelling
    if isinstance(value, Decimal):
        return format(value, "f")  # without an exponent
    if isinstance(value, date | time):
        value = value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=_raise_type_error)


def _raise_type_error(value: Any) -> None:
    raise TypeError(type(value).__name__)
