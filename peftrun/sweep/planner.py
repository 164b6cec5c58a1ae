"""How many cells of a group run at once, and how much memory they need: estimated from files, before anything is loaded. Light.

A cell that runs alone needs what `memory.estimate_memory` says, cells trained together what `joint_memory` says. Before the rows are
tokenized, their lengths come from an earlier run or from `task.max_length`; the number of cells in one step is decided after that
(`joint_memory.choose_cells_per_step`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.run import RunSpec
from peftrun.formatting import format_bytes
from peftrun.planning import memory, memory_fit
from peftrun.planning.joint_memory import Limits, count_fitting
from peftrun.planning.memory import Lengths
from peftrun.planning.memory_fit import Headroom
from peftrun.planning.throughput import Throughputs
from peftrun.sweep import spread
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import Group


@dataclass(frozen=True)
class PlannedBatch:
    """Cells that run at once. `memory`: estimated bytes; None if the base model is not on this disk."""

    number: int
    group: int
    cells: list[Cell]
    memory: float | None = None


@dataclass(frozen=True)
class SweepPlan:
    """Batches of all groups.

    Attributes:
        limit: bytes for a batch; None: unknown.
        allowed: of this process, or of each worker if groups are spread over devices.
        notes: what the estimates are based on, or why there are none.
    """

    groups: list[Group]
    waves: list[PlannedBatch]
    limit: float | None
    allowed: Limits
    notes: list[str] = field(default_factory=list)


def plan_sweep(
    groups: Sequence[Group], allowed: Limits, past: Throughputs | None = None, devices: Sequence[str] = ()
) -> SweepPlan:
    """Split every group into batches: as many cells at once as the limits allow, at least one.

    Args:
        past: earlier runs, which tell row lengths and times; where lengths are unknown, every row counts as task.max_length.
        devices: over which groups are spread; empty: they run one after another.
    """
    if devices and groups:
        groups = spread.spread_groups(groups, devices, past.seconds if past else lambda _: None)
        allowed = replace(allowed, workers=min(len(devices), len(groups)))
    batches: list[PlannedBatch] = []
    notes: dict[str, None] = {}  # without duplicates, in order
    base_infos: dict[str, BaseModelInfo | None] = {}
    limit = allowed.memory
    for number, group in enumerate(groups, 1):
        spec = group.cells[0].spec
        assert spec is not None
        key = repr(spec.model)
        if key not in base_infos:  # most groups of a sweep have the same base model
            base_infos[key] = base_files.read_base_info(spec.model)
        base, group_limits = base_infos[key], allowed.now(spec)
        if base is None:
            name = base_files.format_base_name(spec.model)
            notes[f"memory: not known for {name}, whose files are not on this disk yet"] = None
        limit = limit or group_limits.free
        is_local_cpu = allowed.here and base and not base_files.uses_gpu(spec.device)
        headroom = memory_fit.measure_headroom() if is_local_cpu else None
        for cells, needed in _split_group(group, base, group_limits, headroom, past):
            batch = PlannedBatch(len(batches) + 1, number, cells, needed)
            batches.append(batch)
            available = group_limits.memory or group_limits.free
            if needed and available and needed > available:
                notes[
                    f"memory: wave {batch.number} may need {format_bytes(needed)} of {format_bytes(available)}; "
                    "a smaller trainer.per_device_train_batch_size needs less"
                ] = None
    return SweepPlan(list(groups), batches, limit, allowed, list(notes))


def _split_group(
    group: Group, base: BaseModelInfo | None, limits: Limits, headroom: Headroom | None, past: Throughputs | None
) -> Iterator[tuple[list[Cell], float | None]]:
    """Batches of a group with their estimated bytes. `headroom`: of this machine; None if the cells run elsewhere."""
    cells = group.cells
    if base is None:
        size = limits.cells or max(1, len(cells))
        yield from ((cells[start : start + size], None) for start in range(0, len(cells), size))
        return
    runs: list[tuple[RunSpec, Lengths | None]] = []
    for cell in cells:
        assert cell.spec is not None
        # The estimate depends on the dtype that `auto` means on this machine.
        spec = memory_fit.choose_load_dtype(base, cell.spec, headroom)[0] if headroom else cell.spec
        runs.append((spec, past.lengths(cell.spec) if past else None))
    if group.reason:  # cells that run alone
        yield from (([cell], memory.estimate_memory(base, *run).peak) for cell, run in zip(cells, runs, strict=True))
        return
    start = 0
    while start < len(cells):
        size, needed = count_fitting(base, runs[start:], limits)
        yield cells[start : start + size], needed
        start += size
