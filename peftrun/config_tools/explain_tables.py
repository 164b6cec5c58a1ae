"""An explanation as lines of text: in columns, for a person. Light."""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from shutil import get_terminal_size
from typing import Any

from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config_tools.explanation import Difference, Explanation

LONGEST = 48  # letters of a value where the width of the terminal does not say
SHORTEST = 12


def of_config(found: Explanation) -> Iterator[str]:
    """A line for each key, under its group, then what nothing read, then the command."""
    values = config.flatten(found.origins.values)
    rows = [(key, shown(values[key]), source.told()) for key, source in found.origins.sources.items()]
    chosen = {one.group: f"{one.group}={one.option} ({one.by})" for one in found.origins.choices}
    yield from (text for group, text in chosen.items() if group not in found.origins.values)
    width = max(len(key) for key, _, _ in rows)
    room = min(_room(width, max(len(told) for _, _, told in rows)), max(len(value) for _, value, _ in rows))
    for group, members in groupby(rows, key=lambda row: row[0].split(".")[0]):
        if group in chosen:
            yield chosen[group]
        for key, value, told in members:
            yield f"  {key:<{width}}  {_cut(value, room):<{room}}  {told}"
    yield from _unread(found, values)
    yield from ("", "command:", f"  {found.command}")


def of_difference(found: Difference) -> Iterator[str]:
    """A line for each key that differs, then the overrides that lead there, then the whole command."""
    if not found.values:
        yield "nothing differs: both runs have the same config"
    width = max((len(key) for key in found.values), default=0)
    for key, (one, other) in found.values.items():
        yield f"  {key:<{width}}  {shown(one)} → {shown(other)}"
    if found.overrides:
        yield from ("", "overrides:", f"  {override_syntax.words(found.overrides)}")
    yield from ("", "command:", f"  {found.command}")


def shown(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False)


def _unread(found: Explanation, values: dict[str, Any]) -> Iterator[str]:
    if found.unread:
        yield from ("", "nothing read these when it was run:")
        yield from (f"  {key}={shown(values.get(key))}" for key in found.unread)


def _room(keys: int, told: int) -> int:
    """Letters that a value may take."""
    if not sys.stdout.isatty():
        return LONGEST
    return max(SHORTEST, min(LONGEST, get_terminal_size().columns - keys - told - 6))


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
