"""The table of a sweep that is planned, and what every table on the terminal is made of. Light."""

from collections.abc import Sequence

from peftrun.sweep.cells import Cell
from peftrun.sweep.planner import Plan, Wave
from peftrun.system.sizes import gigabytes

GAP = "  "


def planned(
    cells: Sequence[Cell], plan: Plan, labels: dict[int, str], status: dict[str, str], seconds: dict[str, float | None]
) -> list[str]:
    """Lines of the plan: a row for each cell, then the groups and waves.

    Args: labels: first number of a cell → what was typed for it. status: by id. seconds: id → estimated time of training.
    """
    places = {cell.id: (str(wave.group), str(wave.number)) for wave in plan.waves for cell in wave.cells}
    rows = [("cell", "status", "group", "wave", "time", "values")]
    for cell in cells:
        where, time = places.get(cell.id, ("-", "-")), duration(seconds[cell.id]) if cell.id in places else "-"
        rows.append((cell.id or "-", status[cell.id], *where, time, labels[cell.numbers[0]] + twice(cell.numbers)))
    return [*aligned(rows), "", *aligned([("group", "cells", "how"), *_groups(plan)]), "", *_waves(plan.waves, seconds)]


def twice(numbers: Sequence[int]) -> str:
    """Said of cells that are identical after resolution."""
    return f"  (also number {', '.join(map(str, numbers[1:]))})" if len(numbers) > 1 else ""


def _groups(plan: Plan) -> list[tuple[str, ...]]:
    return [
        (str(number), str(len(group.cells)), f"alone: {group.reason}" if group.reason else "together on one base")
        for number, group in enumerate(plan.groups, 1)
    ]


def _waves(waves: Sequence[Wave], seconds: dict[str, float | None]) -> list[str]:
    rows = [("wave", "group", "cells", "memory", "time")]
    for wave in waves:
        times = [seconds.get(cell.id) for cell in wave.cells]
        memory = "unknown" if wave.memory is None else gigabytes(wave.memory)
        rows.append((str(wave.number), str(wave.group), str(len(wave.cells)), memory, duration(total(times))))
    return aligned(rows) if waves else []


def total(times: Sequence[float | None]) -> float | None:
    """The sum; None if one of them is not known."""
    known = [one for one in times if one is not None]
    return sum(known) if len(known) == len(times) else None


def duration(seconds: float | None) -> str:
    """A time for people: 42 s, 3 min, 1.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns stand below each other; the last column is not filled up."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        GAP.join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
        for row in rows
    ]
