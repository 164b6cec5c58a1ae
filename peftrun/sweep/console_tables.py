"""The tables of a planned sweep on the terminal. Light."""

from collections.abc import Sequence

from peftrun.formatting import align_rows, format_bytes, format_duration
from peftrun.sweep.cells import Cell
from peftrun.sweep.planner import SweepPlan


def format_plan(
    cells: Sequence[Cell],
    plan: SweepPlan,
    labels: dict[int, str],
    status: dict[str, str],
    seconds: dict[str, float | None],
) -> list[str]:
    """Lines of the plan: a row for each cell, then the groups and waves; with the devices over which groups are spread.

    Args: labels: first number of a cell → its overrides. status: by id. seconds: id → estimated time of training.
    """
    places = [(group.device,) if group.device else () for group in plan.groups]
    on = ("device",) if any(places) else ()
    placements = {
        cell.id: (str(wave.group), str(wave.number), *places[wave.group - 1])
        for wave in plan.waves
        for cell in wave.cells
    }
    cell_rows: list[tuple[str, ...]] = [("cell", "status", "group", "wave", *on, "time", "values")]
    for cell in cells:
        placement = placements.get(cell.id, ("-", "-", *("-" for _ in on)))
        time = format_duration(seconds[cell.id]) if cell.id in placements else "-"
        values = labels[cell.numbers[0]] + format_duplicates(cell.numbers)
        cell_rows.append((cell.id or "-", status[cell.id], *placement, time, values))
    group_rows: list[tuple[str, ...]] = [("group", "cells", *on, "how")]
    for number, group in enumerate(plan.groups, 1):
        how = f"alone: {group.reason}" if group.reason else "together on one base model"
        group_rows.append((str(number), str(len(group.cells)), *places[number - 1], how))
    wave_rows = [("wave", "group", "cells", "memory", "time")]
    for wave in plan.waves:
        memory = "unknown" if wave.memory is None else format_bytes(wave.memory)
        time = format_duration(sum_times([seconds.get(cell.id) for cell in wave.cells]))
        wave_rows.append((str(wave.number), str(wave.group), str(len(wave.cells)), memory, time))
    waves = align_rows(wave_rows) if plan.waves else []
    return [*align_rows(cell_rows), "", *align_rows(group_rows), "", *waves]


def format_duplicates(numbers: Sequence[int]) -> str:
    """Suffix for a cell that several jobs of the sweep resolve to."""
    return f"  (also number {', '.join(map(str, numbers[1:]))})" if len(numbers) > 1 else ""


def sum_times(times: Sequence[float | None]) -> float | None:
    """The sum in seconds; None if one of them is unknown."""
    known_times = [time for time in times if time is not None]
    return sum(known_times) if len(known_times) == len(times) else None
