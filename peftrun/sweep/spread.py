"""Which device takes which cells of a sweep: groups are cut where that shortens the whole, and start longest first. Light."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from peftrun.config.schema.run import RunSpec
from peftrun.planning import throughput
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import ELSEWHERE, Group

START = 15.0  # seconds in which a worker imports and loads: 8 measured for the imports, the rest assumed
WORTHWHILE = 1.05  # cuts that shorten the whole by less than this factor are not made
UNKNOWN_ROWS = 1000  # of a data set that has not been read

Work = dict[str, float]  # cell id → seconds of the run alone, or tokens where those of any cell are unknown


def spread_groups(
    groups: Sequence[Group], devices: Sequence[str], seconds: Callable[[RunSpec], float | None]
) -> list[Group]:
    """The groups with their planned devices, longest first; a group may come in several parts of about equal work.

    Args: seconds: estimated time of a run alone; None: unknown.
    """
    work, start = _estimate_work([cell for group in groups for cell in group.cells], seconds)
    totals = [sum(work[cell.id] for cell in group.cells) for group in groups]

    def plan(counts: Sequence[int]) -> tuple[list[Group], float]:
        parts = [part for group, count in zip(groups, counts, strict=True) for part in _cut_group(group, count, work)]
        return _assign_parts(parts, work, start, devices)

    # Groups are cut into parts of at most some work: all of a group, half of it, a third …
    numbers = range(2, len(devices) + 1)
    divisible = [total for group, total in zip(groups, totals, strict=True) if not group.reason]
    limits = {math.inf, *(total / count for total in divisible for count in numbers)}
    options = [[min(len(devices), max(1, math.ceil(total / limit))) for total in totals] for limit in sorted(limits)]
    makespans = [plan(counts)[1] for counts in options]
    enough = min(makespans) * WORTHWHILE
    good = [counts for counts, makespan in zip(options, makespans, strict=True) if makespan <= enough]
    counts = min(good, key=sum)
    for index in range(len(groups)):  # each cut costs the start of a worker: none that is not needed
        whole = [*counts[:index], 1, *counts[index + 1 :]]
        if counts[index] > 1 and plan(whole)[1] <= enough:
            counts = whole
    return plan(counts)[0]


def _estimate_work(cells: Sequence[Cell], seconds: Callable[[RunSpec], float | None]) -> tuple[Work, float]:
    """The work of each cell, and that of a worker's start in the same unit."""
    specs = {cell.id: cell.spec for cell in cells if cell.spec is not None}
    times = {cell_id: seconds(spec) for cell_id, spec in specs.items()}
    known = {cell_id: max(time, 0.001) for cell_id, time in times.items() if time is not None}
    if len(known) == len(times):
        return known, START
    return {cell_id: count_tokens(spec) for cell_id, spec in specs.items()}, 0.0


def count_tokens(spec: RunSpec) -> float:
    """Tokens that a training goes through, with every row as long as `task.max_length` allows."""
    rows = float(spec.trainer.max_steps * throughput.count_step_rows(spec.trainer))
    if spec.trainer.max_steps < 0:
        rows = spec.trainer.num_train_epochs * (spec.task.data.num_train_rows or UNKNOWN_ROWS)
    return max(1.0, rows * spec.task.max_length)


def _cut_group(group: Group, count: int, work: Work) -> list[Group]:
    """The group in at most `count` parts. Cells with the same rows, which share their tokens and the base model's metrics, stay neighbors."""
    if group.reason or count < 2:
        return [group]
    total = sum(work[cell.id] for cell in group.cells)
    tasks = list(dict.fromkeys(repr(cell.spec.task) for cell in group.cells if cell.spec))
    parts: list[list[Cell]] = [[] for _ in range(count)]
    done = 0.0
    for cell in sorted(group.cells, key=lambda cell: tasks.index(repr(cell.spec and cell.spec.task))):
        middle = done + work[cell.id] / 2
        parts[min(count - 1, int(count * middle / total))].append(cell)
        done += work[cell.id]
    return [Group(cells, ELSEWHERE if len(cells) == 1 else "") for cells in parts if cells]


def _assign_parts(
    parts: Sequence[Group], work: Work, start: float, devices: Sequence[str]
) -> tuple[list[Group], float]:
    """Longest first, each to the device that is free first; and when the last one ends."""
    loads = dict.fromkeys(devices, 0.0)
    planned = []
    needed = [(start + sum(work[cell.id] for cell in part.cells), part) for part in parts]
    for time, part in sorted(needed, key=lambda pair: -pair[0]):
        device = min(loads, key=loads.__getitem__)
        loads[device] += time
        planned.append(dataclasses.replace(part, device=device))
    return planned, max(loads.values())
