"""How many cells of a group run at once, and what that takes: estimates from files alone, before anything is loaded. Light.

A cell that runs by itself takes what `memory.estimate_memory` says, cells that are trained together what `joint_memory` says. Before its rows
are there a plan takes their lengths from an earlier run, or from `task.max_length`; how many cells are in one step is decided once
they are (`joint_memory.choose_cells_per_step`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.run import ModelSpec, RunSpec
from peftrun.planning import memory, memory_fit
from peftrun.planning.joint_memory import Limits, count_fitting
from peftrun.planning.memory import Lengths
from peftrun.planning.memory_fit import Headroom
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import Group
from peftrun.system.sizes import format_gigabytes

KnownLengths = Callable[[RunSpec], Lengths | None]


@dataclass(frozen=True)
class PlannedBatch:
    """Cells that run at once. `memory`: estimated bytes; None where the base is not on this disk."""

    number: int
    group: int
    cells: list[Cell]
    memory: float | None = None


@dataclass(frozen=True)
class SweepPlan:
    """`notes`: what the figures rest on, or why there are none. `limit`: bytes; None: none is known."""

    groups: list[Group]
    waves: list[PlannedBatch]
    limit: float | None
    notes: list[str] = field(default_factory=list)


def plan_sweep(groups: Sequence[Group], allowed: Limits, lengths: KnownLengths = lambda _: None) -> SweepPlan:
    """Waves of every group: as many cells at once as the limits allow, at least one; the rest follow in later waves.

    Args: lengths: of a run's rows; None: not known yet, and every row counts as long as it may be.
    """
    waves: list[PlannedBatch] = []
    notes: dict[str, None] = {}
    read: Callable[[ModelSpec], BaseModelInfo | None] = _build_cached_reader()
    limit = allowed.memory
    for number, group in enumerate(groups, 1):
        spec = group.cells[0].spec
        assert spec is not None
        base, own = read(spec.model), allowed.now(spec)
        if base is None:
            notes[
                f"memory: not known for {base_files.format_base_name(spec.model)}, whose files are not on this disk yet"
            ] = None
        limit = limit or own.free
        room = memory_fit.measure_headroom() if allowed.here and base and not base_files.uses_gpu(spec.device) else None
        for cells, needed in _split_group(group, base, own, _Estimate(room, lengths)):
            waves.append(PlannedBatch(len(waves) + 1, number, cells, needed))
            if needed and (most := own.memory or own.free) and needed > most:
                notes[_format_excess(waves[-1], needed, most)] = None
    return SweepPlan(list(groups), waves, limit, list(notes))


def _format_excess(wave: PlannedBatch, needed: float, limit: float) -> str:
    return f"memory: wave {wave.number} may need {format_gigabytes(needed)} of {format_gigabytes(limit)}; a smaller trainer.per_device_train_batch_size needs less"


@dataclass(frozen=True)
class _Estimate:
    """What cells are estimated with. `room`: None where they run elsewhere."""

    room: Headroom | None
    lengths: KnownLengths

    def of(self, base: BaseModelInfo, cell: Cell) -> tuple[RunSpec, Lengths | None]:
        """The cell's run, with the dtype that it will have on this machine, and the lengths of its rows."""
        assert cell.spec is not None
        return (memory_fit.choose_load_dtype(base, cell.spec, self.room)[0] if self.room else cell.spec), self.lengths(
            cell.spec
        )


def _split_group(
    group: Group, base: BaseModelInfo | None, allowed: Limits, estimate: _Estimate
) -> Iterator[tuple[list[Cell], float | None]]:
    if base is None:
        yield from ((cells, None) for cells in _split_by_count(group.cells, allowed.cells))
    elif group.reason:  # a cell by itself
        yield from (([cell], memory.estimate_memory(base, *estimate.of(base, cell)).peak) for cell in group.cells)
    else:
        yield from _split_by_memory(group.cells, base, allowed, estimate)


def _split_by_count(cells: Sequence[Cell], most: int | None) -> Iterator[list[Cell]]:
    size = most or max(1, len(cells))
    return (list(cells[start : start + size]) for start in range(0, len(cells), size))


def _split_by_memory(
    cells: Sequence[Cell], base: BaseModelInfo, allowed: Limits, estimate: _Estimate
) -> Iterator[tuple[list[Cell], float]]:
    waiting = [(cell, *estimate.of(base, cell)) for cell in cells]
    while waiting:
        size, needed = count_fitting(base, [(spec, rows) for _, spec, rows in waiting], allowed)
        yield [cell for cell, *_ in waiting[:size]], needed
        del waiting[:size]


def _build_cached_reader() -> Callable[[ModelSpec], BaseModelInfo | None]:
    known: dict[str, BaseModelInfo | None] = {}

    def read(model: ModelSpec) -> BaseModelInfo | None:
        key = repr(model)
        if key not in known:
            known[key] = base_files.read_base_info(model)
        return known[key]

    return read
