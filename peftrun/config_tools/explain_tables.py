"""An explanation as lines of text: in columns, for a person. Light."""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from shutil import get_terminal_size
from typing import Any

from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config_tools.explanation import ConfigDifference, ConfigExplanation

MAX_VALUE_WIDTH = 48  # letters of a value where the width of the terminal does not say
MIN_VALUE_WIDTH = 12


def format_explanation(found: ConfigExplanation) -> Iterator[str]:
    """A line for each key, under its group, then what nothing read, then the command."""
    values = config.flatten_keys(found.origins.values)
    rows = [(key, format_value(values[key]), source.told()) for key, source in found.origins.sources.items()]
    chosen = {one.group: f"{one.group}={one.option} ({one.chosen_by})" for one in found.origins.choices}
    yield from (text for group, text in chosen.items() if group not in found.origins.values)
    width = max(len(key) for key, _, _ in rows)
    room = min(
        _compute_value_width(width, max(len(told) for _, _, told in rows)), max(len(value) for _, value, _ in rows)
    )
    for group, members in groupby(rows, key=lambda row: row[0].split(".")[0]):
        if group in chosen:
            yield chosen[group]
        for key, value, told in members:
            yield f"  {key:<{width}}  {_truncate_text(value, room):<{room}}  {told}"
    yield from _format_unused(found, values)
    yield from ("", "command:", f"  {found.command}")


def format_difference(found: ConfigDifference) -> Iterator[str]:
    """A line for each key that differs, then the overrides that lead there, then the whole command."""
    if not found.values:
        yield "nothing differs: both runs have the same config"
    width = max((len(key) for key in found.values), default=0)
    for key, (one, other) in found.values.items():
        yield f"  {key:<{width}}  {format_value(one)} → {format_value(other)}"
    if found.overrides:
        yield from ("", "overrides:", f"  {override_syntax.join_overrides(found.overrides)}")
    yield from ("", "command:", f"  {found.command}")


def format_value(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False)


def _format_unused(found: ConfigExplanation, values: dict[str, Any]) -> Iterator[str]:
    if found.unread:
        yield from ("", "nothing read these when it was run:")
        yield from (f"  {key}={format_value(values.get(key))}" for key in found.unread)


def _compute_value_width(keys: int, told: int) -> int:
    """Letters that a value may take."""
    if not sys.stdout.isatty():
        return MAX_VALUE_WIDTH
    return max(MIN_VALUE_WIDTH, min(MAX_VALUE_WIDTH, get_terminal_size().columns - keys - told - 6))


def _truncate_text(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
