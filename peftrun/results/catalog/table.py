"""Runs as lines of text, or as JSON: on a terminal as many columns as fit, unabridged where another program reads."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from typing import Any

from peftrun.formatting import COLUMN_GAP, align_rows, format_rough_duration
from peftrun.results.catalog.columns import FIXED, format_value
from peftrun.results.catalog.index import IndexedRun
from peftrun.results.catalog.query import SearchResult

# In the order of the table; the number tells who goes first where there is no room: the largest.
WEIGHT = {
    "run": 0, "status": 2, "action": 9, "task": 3, "base": 6, "method": 4, "rank": 5, "metric": 1, "date": 10, "size": 7, "trainable": 12,
    "steps": 11, "time": 8, "seed": 13, "template": 14, "sweep": 15,
}  # fmt: skip
SHOWN = {*WEIGHT, "before", "after", "seconds"}  # by the usual columns
BEFORE = re.compile(r"\S+ → ")
SIGNS = {"status": "", "completed": "✓", "failed": "✗", "stopped": "■", "interrupted": "‖", "running": "▶", "dead": "†"}
FEW_LETTERS: dict[str, Callable[[str], str]] = {
    "status": lambda cell: SIGNS.get(cell, cell[:1]),
    "metric": lambda cell: BEFORE.sub("", cell),
}
REQUESTED = 2  # weight of a column that was asked about
RIGHT = {"rank", "size", "trainable", "steps", "time", "seed"}
Facts = dict[str, Any]


def format_table(found: SearchResult, more: Sequence[str] = ()) -> list[str]:
    """A line a run below a heading. `more`: columns that the user has asked about, shown beside the usual ones."""
    return _fit_to_terminal(_align_numbers(build_columns(found, more))) if found.runs else []


def build_columns(found: SearchResult, more: Sequence[str] = ()) -> dict[str, list[str]]:
    """Column → its heading, and a cell for each run; those in which no run has anything are left out."""
    cells = _fill_columns(_build_default_columns(found.runs), found.runs)
    for name in more:
        own = [name, *map(_make_column_reader(found, name), found.runs)]
        if name not in SHOWN and not any(_shows_column(each, own) for each in (cells.get("rank"), cells.get("metric"))):
            cells[name] = own
    return cells


def _shows_column(column: list[str] | None, asked: list[str]) -> bool:
    """Whether a column shows what was asked about: under the same title, or the same rank under a longer name."""
    if column is None:
        return False
    return column[0] == asked[0] or (column[0] == "rank" and asked[0] in ("r", "lora.r") and column[1:] == asked[1:])


def serialize_run(run: IndexedRun) -> Facts:
    """A run for another program: every fixed column, its metrics and versions, its config; figures that JSON cannot say are null."""
    facts = {name: run.facts.get(name) for name in FIXED}
    metrics = {key: value for key, value in run.facts.items() if key.startswith("metrics.")}
    return replace_nonfinite({**facts, **metrics, "config": run.config})


def replace_nonfinite(value: Any) -> Any:
    """The same with None for every figure that is not finite."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_size_cell(value: Any) -> str:
    """Bytes as megabytes, or kilobytes where they are few."""
    if not isinstance(value, int):
        return "-"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.0f} kB"


def format_change(facts: Facts, named: bool) -> str:
    """The figure that says most, before and after. `named`: with its name."""
    after, before = facts.get("after"), facts.get("before")
    if after is None:
        return "-"
    said = format_metric(after) if before is None else f"{format_metric(before)} → {format_metric(after)}"
    return f"{facts.get('metric')} {said}" if named else said


def format_metric(value: Any) -> str:
    """A metric in a table."""
    return f"{value:.4f}" if isinstance(value, float) else format_value(value)


def _build_default_columns(runs: Sequence[IndexedRun]) -> dict[str, Callable[[IndexedRun], str]]:
    several = len({run.facts.get("metric") for run in runs if run.facts.get("metric")}) > 1
    shown: dict[str, Callable[[Facts], str]] = {
        "metric": lambda facts: format_change(facts, several),
        "size": lambda facts: format_size_cell(facts.get("size")),
        "date": lambda facts: format_value(facts.get("date"))[:16],
        "time": lambda facts: "-" if facts.get("seconds") is None else format_rough_duration(facts["seconds"]),
        "trainable": lambda facts: f"{facts['trainable']:,}" if isinstance(facts.get("trainable"), int) else "-",
    }
    return {name: _make_cell_reader(shown.get(name), name) for name in WEIGHT}


def _make_cell_reader(shown: Callable[[Facts], str] | None, name: str) -> Callable[[IndexedRun], str]:
    return lambda run: shown(run.facts) if shown else format_value(run.facts.get(name))


def _make_column_reader(found: SearchResult, name: str) -> Callable[[IndexedRun], str]:
    value = found.columns.value(name)
    return lambda run: format_value(value(run))


def _fill_columns(columns: dict[str, Callable[[IndexedRun], str]], runs: Sequence[IndexedRun]) -> dict[str, list[str]]:
    """Heading and cells of each column in which a run has something."""
    every = {name: [cell(run) for run in runs] for name, cell in columns.items()}
    filled = {name: cells for name, cells in every.items() if {*cells} - {"-"}}
    names = {run.facts.get("metric") for run in runs if run.facts.get("metric")}
    title = str(names.pop()) if len(names) == 1 else "metric"
    return {name: [title if name == "metric" else name, *cells] for name, cells in filled.items()}


def _align_numbers(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Figures stand below each other at their right."""
    return {name: _right_align(cells) if name in RIGHT else cells for name, cells in columns.items()}


def _right_align(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _fit_to_terminal(columns: dict[str, list[str]]) -> list[str]:
    if sys.stdout.isatty():
        columns = _narrow_columns(columns, get_terminal_size().columns)
    return align_rows([[*row] for row in zip(*columns.values(), strict=True)])


def _narrow_columns(columns: dict[str, list[str]], room: int) -> dict[str, list[str]]:
    """Without what is the same in all rows and says little, then without the least important, until all fits."""
    left = dict(columns)
    for name in ("status", "action", "seed", "template"):
        if _measure_width(left) > room and name in left and len({*left[name][1:]}) == 1:
            del left[name]
    kept = {name: cells for name, cells in left.items() if WEIGHT.get(name, REQUESTED) <= WEIGHT["task"]}
    if _measure_width(kept) > room:  # rather these in few letters than one of them not at all
        left |= {name: [*map(FEW_LETTERS[name], cells)] for name, cells in kept.items() if name in FEW_LETTERS}
    while len(left) > 1 and _measure_width(left) > room:
        del left[max(left, key=lambda name: WEIGHT.get(name, REQUESTED))]
    return left


def _measure_width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, cells)) for cells in columns.values()) + len(COLUMN_GAP) * (len(columns) - 1)
