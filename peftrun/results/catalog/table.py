"""Runs as lines of text, or as JSON: on a terminal as many columns as fit, unabridged where another program reads."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from typing import Any

from peftrun.formatting import COLUMN_GAP, align_rows, rough_duration
from peftrun.results.catalog.columns import FIXED, text
from peftrun.results.catalog.index import Run
from peftrun.results.catalog.query import Found

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
ASKED = 2  # weight of a column that was asked about
RIGHT = {"rank", "size", "trainable", "steps", "time", "seed"}
Facts = dict[str, Any]


def lines(found: Found, more: Sequence[str] = ()) -> list[str]:
    """A line a run below a heading. `more`: columns that the user has asked about, shown beside the usual ones."""
    return _fitted(_adjusted(columns(found, more))) if found.runs else []


def columns(found: Found, more: Sequence[str] = ()) -> dict[str, list[str]]:
    """Column → its heading, and a cell for each run; those in which no run has anything are left out."""
    cells = _filled(_usual(found.runs), found.runs)
    for name in more:
        own = [name, *map(_own(found, name), found.runs)]
        if name not in SHOWN and not any(_says(each, own) for each in (cells.get("rank"), cells.get("metric"))):
            cells[name] = own
    return cells


def _says(column: list[str] | None, asked: list[str]) -> bool:
    """Whether a column shows what was asked about: under the same title, or the same rank under a longer name."""
    if column is None:
        return False
    return column[0] == asked[0] or (column[0] == "rank" and asked[0] in ("r", "lora.r") and column[1:] == asked[1:])


def as_dict(run: Run) -> Facts:
    """A run for another program: every fixed column, its metrics and versions, its config; figures that JSON cannot say are null."""
    facts = {name: run.facts.get(name) for name in FIXED}
    metrics = {key: value for key, value in run.facts.items() if key.startswith("metrics.")}
    return plain({**facts, **metrics, "config": run.config})


def plain(value: Any) -> Any:
    """The same with None for every figure that is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(value: Any) -> str:
    """Bytes as megabytes, or kilobytes where they are few."""
    if not isinstance(value, int):
        return "-"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.0f} kB"


def change(facts: Facts, named: bool) -> str:
    """The figure that says most, before and after. `named`: with its name."""
    after, before = facts.get("after"), facts.get("before")
    if after is None:
        return "-"
    said = figure(after) if before is None else f"{figure(before)} → {figure(after)}"
    return f"{facts.get('metric')} {said}" if named else said


def figure(value: Any) -> str:
    """A metric in a table."""
    return f"{value:.4f}" if isinstance(value, float) else text(value)


def _usual(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    several = len({run.facts.get("metric") for run in runs if run.facts.get("metric")}) > 1
    shown: dict[str, Callable[[Facts], str]] = {
        "metric": lambda facts: change(facts, several),
        "size": lambda facts: size(facts.get("size")),
        "date": lambda facts: text(facts.get("date"))[:16],
        "time": lambda facts: "-" if facts.get("seconds") is None else rough_duration(facts["seconds"]),
        "trainable": lambda facts: f"{facts['trainable']:,}" if isinstance(facts.get("trainable"), int) else "-",
    }
    return {name: _cell(shown.get(name), name) for name in WEIGHT}


def _cell(shown: Callable[[Facts], str] | None, name: str) -> Callable[[Run], str]:
    return lambda run: shown(run.facts) if shown else text(run.facts.get(name))


def _own(found: Found, name: str) -> Callable[[Run], str]:
    value = found.columns.value(name)
    return lambda run: text(value(run))


def _filled(columns: dict[str, Callable[[Run], str]], runs: Sequence[Run]) -> dict[str, list[str]]:
    """Heading and cells of each column in which a run has something."""
    every = {name: [cell(run) for run in runs] for name, cell in columns.items()}
    filled = {name: cells for name, cells in every.items() if {*cells} - {"-"}}
    names = {run.facts.get("metric") for run in runs if run.facts.get("metric")}
    title = str(names.pop()) if len(names) == 1 else "metric"
    return {name: [title if name == "metric" else name, *cells] for name, cells in filled.items()}


def _adjusted(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Figures stand below each other at their right."""
    return {name: _to_the_right(cells) if name in RIGHT else cells for name, cells in columns.items()}


def _to_the_right(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _fitted(columns: dict[str, list[str]]) -> list[str]:
    if sys.stdout.isatty():
        columns = _narrowed(columns, get_terminal_size().columns)
    return align_rows([[*row] for row in zip(*columns.values(), strict=True)])


def _narrowed(columns: dict[str, list[str]], room: int) -> dict[str, list[str]]:
    """Without what is the same in all rows and says little, then without the least important, until all fits."""
    left = dict(columns)
    for name in ("status", "action", "seed", "template"):
        if _width(left) > room and name in left and len({*left[name][1:]}) == 1:
            del left[name]
    kept = {name: cells for name, cells in left.items() if WEIGHT.get(name, ASKED) <= WEIGHT["task"]}
    if _width(kept) > room:  # rather these in few letters than one of them not at all
        left |= {name: [*map(FEW_LETTERS[name], cells)] for name, cells in kept.items() if name in FEW_LETTERS}
    while len(left) > 1 and _width(left) > room:
        del left[max(left, key=lambda name: WEIGHT.get(name, ASKED))]
    return left


def _width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, cells)) for cells in columns.values()) + len(COLUMN_GAP) * (len(columns) - 1)
