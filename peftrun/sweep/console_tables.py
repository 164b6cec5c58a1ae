"""The table of a sweep that is planned, and what every table on the terminal is made of. Light."""

from collections.abc import Sequence

from peftrun.formatting import align_rows, format_rough_duration
from peftrun.sweep.cells import Cell
from peftrun.sweep.planner import PlannedBatch, SweepPlan
from peftrun.system.sizes import format_gigabytes


def format_plan(
    cells: Sequence[Cell],
    plan: SweepPlan,
    labels: dict[int, str],
    status: dict[str, str],
    seconds: dict[str, float | None],
) -> list[str]:
    """Lines of the plan: a row for each cell, then the groups and waves.

    Args: labels: first number of a cell → what was typed for it. status: by id. seconds: id → estimated time of training.
    """
    places = {cell.id: (str(wave.group), str(wave.number)) for wave in plan.waves for cell in wave.cells}
    rows = [("cell", "status", "group", "wave", "time", "values")]
    for cell in cells:
        where, time = (
            places.get(cell.id, ("-", "-")),
            format_rough_duration(seconds[cell.id]) if cell.id in places else "-",
        )
        rows.append(
            (cell.id or "-", status[cell.id], *where, time, labels[cell.numbers[0]] + format_duplicates(cell.numbers))
        )
    return [
        *align_rows(rows),
        "",
        *align_rows([("group", "cells", "how"), *_list_group_rows(plan)]),
        "",
        *_format_waves(plan.waves, seconds),
    ]


def format_duplicates(numbers: Sequence[int]) -> str:
    """Said of cells that are identical after resolution."""
    return f"  (also number {', '.join(map(str, numbers[1:]))})" if len(numbers) > 1 else ""


def _list_group_rows(plan: SweepPlan) -> list[tuple[str, ...]]:
    return [
        (str(number), str(len(group.cells)), f"alone: {group.reason}" if group.reason else "together on one base")
        for number, group in enumerate(plan.groups, 1)
    ]


def _format_waves(waves: Sequence[PlannedBatch], seconds: dict[str, float | None]) -> list[str]:
    rows = [("wave", "group", "cells", "memory", "time")]
    for wave in waves:
        times = [seconds.get(cell.id) for cell in wave.cells]
        memory = "unknown" if wave.memory is None else format_gigabytes(wave.memory)
        rows.append(
            (str(wave.number), str(wave.group), str(len(wave.cells)), memory, format_rough_duration(sum_times(times)))
        )
    return align_rows(rows) if waves else []


def sum_times(times: Sequence[float | None]) -> float | None:
    """The sum; None if one of them is not known."""
    known = [one for one in times if one is not None]
    return sum(known) if len(known) == len(times) else None
