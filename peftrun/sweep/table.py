"""Tables of a sweep on the terminal: what is planned, and what came out. Light."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from peftrun import console
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
        rows.append((cell.id or "-", status[cell.id], *where, time, labels[cell.numbers[0]] + _twice(cell.numbers)))
    return [*aligned(rows), "", *aligned([("group", "cells", "how"), *_groups(plan)]), "", *_waves(plan.waves, seconds)]


def _twice(numbers: Sequence[int]) -> str:
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


def _ended(summary: dict[str, Any], batch: Collection[int], labels: dict[int, str]) -> list[str]:
    name = summary["objective"]
    rows = [("cell", "status", name, "seconds", "values")]
    for cell in summary["cells"]:
        if not {*cell["numbers"]} & {*batch}:
            continue
        text = labels[cell["numbers"][0]] + _twice(cell["numbers"])
        rows.append((cell["id"] or "-", cell["status"], _change(cell, name), _figure(cell["seconds"], ".1f"), text))
    return aligned(rows)


def closing(summary: dict[str, Any], batch: Collection[int], labels: dict[int, str], folder: Path) -> list[str]:
    """Lines at the end of a sweep, or of a batch of a search: a row for each of its cells, where they are, and the best so far.

    Args: summary: what sweep.json holds. batch: numbers of the cells. labels: first number of a cell → what was typed for it.
    """
    counts = Counter(cell["status"] for cell in summary["cells"])
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    winner = best(summary)
    lines = [*_ended(summary, batch, labels), "", f"sweep  {said}: {console.short(folder)}"]
    if winner:
        lines.append(
            f"best   {summary['objective']} {winner['objective']:.4f}: {console.short(folder / winner['folder'])}"
        )
    return lines


def best(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The completed cell with the lowest objective; None if none has one."""
    known = [cell for cell in summary["cells"] if cell["status"] == "completed" and cell["objective"] is not None]
    return min(known, key=lambda cell: cell["objective"], default=None)


def _change(cell: dict[str, Any], name: str) -> str:
    before, after = cell["metrics"]["before"].get(name), cell["objective"]
    return f"{_figure(before, '.4f')} → {_figure(after, '.4f')}" if before is not None else _figure(after, ".4f")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


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
