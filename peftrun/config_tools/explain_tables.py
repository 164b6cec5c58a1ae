"""Explanations of configs as text tables. Light."""

import sys
from collections.abc import Iterator
from itertools import groupby
from shutil import get_terminal_size

from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config_tools.explanation import ConfigDifference, ConfigExplanation
from peftrun.formatting import format_value

# Width of the column of values, in characters. Without a terminal the maximum is used.
MAX_VALUE_WIDTH = 48
MIN_VALUE_WIDTH = 12


def format_explanation(explanation: ConfigExplanation) -> Iterator[str]:
    """A line for each key, grouped by group, then the unused keys, then the command."""
    origins = explanation.origins
    values = config.flatten_keys(origins.values)
    rows = [(key, format_value(values[key]), source.describe()) for key, source in origins.sources.items()]
    headers = {choice.group: f"{choice.group}={choice.option} ({choice.chosen_by})" for choice in origins.choices}
    # `experiment` is a group without values of its own.
    yield from (header for group, header in headers.items() if group not in origins.values)
    key_width = max(len(key) for key, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    value_width = min(_compute_value_width(key_width, max(len(source) for _, _, source in rows)), value_width)
    for group, members in groupby(rows, key=lambda row: row[0].split(".")[0]):
        if group in headers:
            yield headers[group]
        for key, value, source in members:
            shown = value if len(value) <= value_width else f"{value[: value_width - 1]}…"
            yield f"  {key:<{key_width}}  {shown:<{value_width}}  {source}"
    if explanation.unused_keys:
        yield from ("", "keys that the run did not use:")
        yield from (f"  {key}={format_value(values.get(key))}" for key in explanation.unused_keys)
    yield from ("", "command:", f"  {explanation.command}")


def format_difference(difference: ConfigDifference) -> Iterator[str]:
    """A line for each key that differs, then the overrides that make the difference, then the whole command."""
    if not difference.values:
        yield "nothing differs: both runs have the same config"
    width = max((len(key) for key in difference.values), default=0)
    for key, (before, after) in difference.values.items():
        yield f"  {key:<{width}}  {format_value(before)} → {format_value(after)}"
    if difference.overrides:
        yield from ("", "overrides:", f"  {override_syntax.join_overrides(difference.overrides)}")
    yield from ("", "command:", f"  {difference.command}")


def _compute_value_width(key_width: int, source_width: int) -> int:
    """Characters left for values next to keys and sources; 6 are for indent and gaps."""
    if not sys.stdout.isatty():
        return MAX_VALUE_WIDTH
    return max(MIN_VALUE_WIDTH, min(MAX_VALUE_WIDTH, get_terminal_size().columns - key_width - source_width - 6))
