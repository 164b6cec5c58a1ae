"""Runs as a text table or as JSON: on a terminal as many columns as fit, in a pipe all of them in full."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from typing import Any

from peftrun.formatting import COLUMN_GAP, align_rows, format_bytes, format_duration
from peftrun.results.catalog.columns import FIXED, format_table_value
from peftrun.results.catalog.index import IndexedRun
from peftrun.results.catalog.query import SearchResult

# Columns in their order → weight; on a narrow terminal the largest weight is dropped first.
WEIGHT = {
    "run": 0, "status": 2, "action": 9, "task": 3, "base": 6, "method": 4, "rank": 5, "metric": 1, "date": 10, "size": 7, "trainable": 12,
    "steps": 11, "time": 8, "seed": 13, "template": 14, "sweep": 15,
}  # fmt: skip
SHOWN = {*WEIGHT, "before", "after", "seconds"}  # facts that the default columns show
BEFORE = re.compile(r"\S+ → ")
SIGNS = {"status": "", "completed": "✓", "failed": "✗", "stopped": "■", "interrupted": "‖", "running": "▶", "dead": "†"}
SHORT_FORMS: dict[str, Callable[[str], str]] = {
    "status": lambda cell: SIGNS.get(cell, cell[:1]),
    "metric": lambda cell: BEFORE.sub("", cell),
}
REQUESTED = 2  # weight of a column that `where` or `sort` names
RIGHT = {"rank", "size", "trainable", "steps", "time", "seed"}
Facts = dict[str, Any]


def format_table(result: SearchResult, queried: Sequence[str] = ()) -> list[str]:
    """Heading and one line per run. `queried`: columns that the query names, shown after the default ones."""
    if not result.runs:
        return []
    columns = build_columns(result, queried)
    for name in RIGHT & columns.keys():
        width = max(map(len, columns[name]))
        columns[name] = [cell.rjust(width) for cell in columns[name]]
    if sys.stdout.isatty():
        # Columns are dropped until the table fits: first those with equal values in all rows, then by weight.
        max_width = get_terminal_size().columns
        for name in ("status", "action", "seed", "template"):
            if _measure_width(columns) > max_width and name in columns and len({*columns[name][1:]}) == 1:
                del columns[name]
        important = {name: cells for name, cells in columns.items() if WEIGHT.get(name, REQUESTED) <= WEIGHT["task"]}
        if _measure_width(important) > max_width:  # abbreviate rather than drop one of them
            columns |= {name: [*map(SHORT_FORMS[name], important[name])] for name in important if name in SHORT_FORMS}
        while len(columns) > 1 and _measure_width(columns) > max_width:
            del columns[max(columns, key=lambda name: WEIGHT.get(name, REQUESTED))]
    return align_rows([[*row] for row in zip(*columns.values(), strict=True)])


def build_columns(result: SearchResult, queried: Sequence[str] = ()) -> dict[str, list[str]]:
    """Column → heading and one cell per run; columns without any value are left out."""
    metrics = {run.facts.get("metric") for run in result.runs if run.facts.get("metric")}
    formats: dict[str, Callable[[Facts], str]] = {
        # One metric goes into the heading; if runs have different ones, each cell names its own.
        "metric": lambda facts: format_change(facts, len(metrics) > 1),
        "size": lambda facts: format_bytes(facts["size"]) if isinstance(facts.get("size"), int) else "-",
        "date": lambda facts: format_table_value(facts.get("date"))[:16],  # to the minute
        "time": lambda facts: "-" if facts.get("seconds") is None else format_duration(facts["seconds"]),
        "trainable": lambda facts: f"{facts['trainable']:,}" if isinstance(facts.get("trainable"), int) else "-",
    }
    columns = {}
    for name in WEIGHT:
        facts = [run.facts for run in result.runs]
        cells = [formats[name](row) if name in formats else format_table_value(row.get(name)) for row in facts]
        if {*cells} - {"-"}:
            heading = str(next(iter(metrics))) if name == "metric" and len(metrics) == 1 else name
            columns[name] = [heading, *cells]
    for name in queried:
        read_value = result.columns.make_reader(name)
        column = [name, *(format_table_value(read_value(run)) for run in result.runs)]
        # A default column may show it under another name: the main metric has its name in the heading, lora.r is the rank.
        is_metric = name == columns.get("metric", [""])[0]
        is_rank = name in ("r", "lora.r") and column[1:] == columns.get("rank", [])[1:]
        if name not in SHOWN and not is_metric and not is_rank:
            columns[name] = column
    return columns


def serialize_run(run: IndexedRun) -> Facts:
    """A run as JSON-serializable values: fixed columns, metrics, versions and config; non-finite numbers are null."""
    facts = {name: run.facts.get(name) for name in FIXED}
    metrics = {key: value for key, value in run.facts.items() if key.startswith("metrics.")}
    return replace_nonfinite({**facts, **metrics, "config": run.config})


def replace_nonfinite(value: Any) -> Any:
    """A copy with None for every non-finite number, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_change(facts: Facts, with_name: bool) -> str:
    """The main metric before and after training. `with_name`: preceded by its name."""
    after, before = facts.get("after"), facts.get("before")
    if after is None:
        return "-"
    change = format_metric(after) if before is None else f"{format_metric(before)} → {format_metric(after)}"
    return f"{facts.get('metric')} {change}" if with_name else change


def format_metric(value: Any) -> str:
    """A metric as a table cell."""
    return f"{value:.4f}" if isinstance(value, float) else format_table_value(value)


def _measure_width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, cells)) for cells in columns.values()) + len(COLUMN_GAP) * (len(columns) - 1)
