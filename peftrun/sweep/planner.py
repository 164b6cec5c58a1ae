"""How many cells of a group run at once, and what that takes: estimates from files alone, before anything is loaded. Light.

A cell that runs by itself takes what `memory.of_run` says. Cells that are trained together take PROCESS + the base once + for each cell
    adapter parameters × (4 weight + 4 gradient + the optimiser's state, 8 for Adam) bytes, and
    tokens of a batch × layers × (13 × hidden + 4 × inner) × bytes of a weight: what a layer keeps for its backward pass
    (two norms of 4 each, 5 around attention, whose scores are not kept; gate, up, their activation and product), with
    every row as long as the longest, and the logits of what is learned of a row in float32, twice.
Before its rows are there a plan takes their lengths from an earlier run, or from `task.max_length`; how many cells are in one step is
decided once they are (`seats`).
Measured on SmolLM2-135M, bfloat16: a further cell of a batch of 512 tokens took 470 MB, the formula says 460.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from peftrun.errors import ConfigError
from peftrun.schema import ModelSpec, RunSpec
from peftrun.sweep import bases, fitting, memory, parameters
from peftrun.sweep.bases import Base
from peftrun.sweep.cells import Cell
from peftrun.sweep.fitting import Headroom
from peftrun.sweep.groups import Group
from peftrun.sweep.memory import Lengths
from peftrun.system import free_memory
from peftrun.system.sizes import amount, gigabytes

KnownLengths = Callable[[RunSpec], Lengths | None]
PROCESS = 900_000_000  # what a run holds beside base and cells, measured: 530 MB once the libraries are imported, 900 MB at its height


@dataclass(frozen=True)
class Wave:
    """Cells that run at once. `memory`: estimated bytes; None where the base is not on this disk."""

    number: int
    group: int
    cells: list[Cell]
    memory: float | None = None


@dataclass(frozen=True)
class Plan:
    """`notes`: what the figures rest on, or why there are none. `limit`: bytes; None: none is known."""

    groups: list[Group]
    waves: list[Wave]
    limit: float | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """What cells that are trained together may take.

    Attributes:
        memory, cells: what the user allows: bytes, and cells in one step; None: nothing was said.
        here: they run on this machine, whose memory is a limit where the user has set none.
        free: bytes that are free here; None: not looked at, or not known.
    """

    memory: int | None = None
    cells: int | None = None
    here: bool = True
    free: int | None = None

    def now(self, spec: RunSpec) -> "Limits":
        """The same with what is free at this moment for such a run."""
        looked_at = self.here and not bases.on_gpu(spec.device)
        return replace(self, free=free_memory.available().bytes if looked_at else None)

    @property
    def bytes(self) -> int | None:
        """Bytes that nothing may go beyond; None: there is no such limit. What the user sets wins over what is free."""
        return self.memory or (self.free if self.cells is None else None)


def limits(memory_limit: object, max_cells: object, here: bool = True) -> Limits:
    """The launcher's options, checked. Raises: ConfigError: one of them is no such thing; one line each."""
    problems = []
    memory = amount(memory_limit)
    if memory_limit is not None and not memory:
        problems.append(
            f"hydra.launcher.memory_limit={memory_limit}: must be an amount of memory; type hydra.launcher.memory_limit=6GiB"
        )
    if max_cells is not None and (not isinstance(max_cells, int) or isinstance(max_cells, bool) or max_cells < 1):
        problems.append(
            f"hydra.launcher.max_cells={max_cells}: must be a whole number of at least 1; type hydra.launcher.max_cells=8"
        )
    if problems:
        raise ConfigError(*problems)
    return Limits(memory, max_cells if isinstance(max_cells, int) else None, here)


def plan(groups: Sequence[Group], allowed: Limits, lengths: KnownLengths = lambda _: None) -> Plan:
    """Waves of every group: as many cells at once as the limits allow, at least one; the rest follow in later waves.

    Args: lengths: of a run's rows; None: not known yet, and every row counts as long as it may be.
    """
    waves: list[Wave] = []
    notes: dict[str, None] = {}
    read: Callable[[ModelSpec], Base | None] = _remembered()
    limit = allowed.memory
    for number, group in enumerate(groups, 1):
        spec = group.cells[0].spec
        assert spec is not None
        base, own = read(spec.model), allowed.now(spec)
        if base is None:
            notes[f"memory: not known for {bases.name_of(spec.model)}, whose files are not on this disk yet"] = None
        limit = limit or own.free
        room = fitting.headroom() if allowed.here and base and not bases.on_gpu(spec.device) else None
        for cells, needed in _fill(group, base, own, _Estimate(room, lengths)):
            waves.append(Wave(len(waves) + 1, number, cells, needed))
            if needed and (most := own.memory or own.free) and needed > most:
                notes[_beyond(waves[-1], needed, most)] = None
    return Plan(list(groups), waves, limit, list(notes))


def _beyond(wave: Wave, needed: float, limit: float) -> str:
    return f"memory: wave {wave.number} may need {gigabytes(needed)} of {gigabytes(limit)}; a smaller trainer.per_device_train_batch_size needs less"


@dataclass(frozen=True)
class _Estimate:
    """What cells are estimated with. `room`: None where they run elsewhere."""

    room: Headroom | None
    lengths: KnownLengths

    def of(self, base: Base, cell: Cell) -> tuple[RunSpec, Lengths | None]:
        """The cell's run, with the dtype that it will have on this machine, and the lengths of its rows."""
        assert cell.spec is not None
        return (fitting.settled(base, cell.spec, self.room)[0] if self.room else cell.spec), self.lengths(cell.spec)


def _fill(
    group: Group, base: Base | None, allowed: Limits, estimate: _Estimate
) -> Iterator[tuple[list[Cell], float | None]]:
    if base is None:
        yield from ((cells, None) for cells in _by_number(group.cells, allowed.cells))
    elif group.reason:  # a cell by itself
        yield from (([cell], memory.of_run(base, *estimate.of(base, cell)).peak) for cell in group.cells)
    else:
        yield from _by_memory(group.cells, base, allowed, estimate)


def _by_number(cells: Sequence[Cell], most: int | None) -> Iterator[list[Cell]]:
    size = most or max(1, len(cells))
    return (list(cells[start : start + size]) for start in range(0, len(cells), size))


def _by_memory(
    cells: Sequence[Cell], base: Base, allowed: Limits, estimate: _Estimate
) -> Iterator[tuple[list[Cell], float]]:
    waiting = [(cell, *estimate.of(base, cell)) for cell in cells]
    while waiting:
        size, needed = _fitting(base, [(spec, rows) for _, spec, rows in waiting], allowed)
        yield [cell for cell, *_ in waiting[:size]], needed
        del waiting[:size]


def _fitting(base: Base, runs: Sequence[tuple[RunSpec, Lengths | None]], allowed: Limits) -> tuple[int, float]:
    """How many of the first of these runs fit together, at least one, and the bytes that they take."""
    needed, size = shared_memory(base, runs[0][0]) + cell_memory(base, *runs[0]), 1
    for spec, rows in runs[1 : allowed.cells]:
        more = cell_memory(base, spec, rows)
        if allowed.bytes is not None and needed + more > allowed.bytes:
            break
        size, needed = size + 1, needed + more
    return size, needed


def seats(runs: Sequence[tuple[RunSpec, Lengths | None]], allowed: Limits) -> tuple[int, str]:
    """How many of these runs, which share a base, are trained in one step, whichever they are; and what is said of that.

    Args: runs: with the lengths of their rows; of each the dtype that it has.
    """
    count, base = len(runs), bases.read(runs[0][0].model)
    said = f"{count} cells on one base"
    if base is None:
        size = min(count, allowed.cells or count)
        return size, f"{said}, {_at_once(size, count, allowed)}"
    largest_first = sorted(runs, key=lambda run: cell_memory(base, *run), reverse=True)
    size, needed = _fitting(base, largest_first, allowed)
    told = f"{said}, {_at_once(size, count, allowed)}: about {gigabytes(needed)}{_of_what(allowed)}"
    longest = max((rows.longest for _, rows in runs if rows), default=None)
    told += f", rows of at most {longest} tokens" if longest else ""
    if size < count and size != allowed.cells:
        told += (
            "; a larger one takes more"
            if allowed.memory
            else f"; hydra.launcher.max_cells={count} takes all at once, whatever the estimate"
        )
    return size, told


def _at_once(size: int, count: int, allowed: Limits) -> str:
    if size == count:
        return "all at once"
    return f"{size} at once" + (f" (hydra.launcher.max_cells={size})" if size == allowed.cells else "")


def _of_what(allowed: Limits) -> str:
    if allowed.memory:
        return f" of hydra.launcher.memory_limit ({gigabytes(allowed.memory)})"
    return f" of {gigabytes(allowed.free)} free" if allowed.free else ""


def shared_memory(base: Base, spec: RunSpec) -> float:
    """Estimated bytes that a wave takes whatever its cells: the process, and the base once."""
    return PROCESS + base.bytes(bases.width(spec.device), spec.model.quantization)


def cell_memory(base: Base, spec: RunSpec, lengths: Lengths | None = None) -> float:
    """Estimated bytes of one cell among others: its adapter with gradients and the optimiser's state, and the activations of its rows.

    Args: lengths: of its rows; None: as long as they may be.
    """
    rows, batch = lengths or memory.longest(spec), spec.trainer.per_device_train_batch_size
    trained = parameters.count(base, spec.lora, spec.task).trained
    activations = batch * rows.longest * base.layers * (13 * base.hidden + 4 * base.inner) * bases.width(spec.device)
    logits = 0 if spec.task.kind in memory.ONE else batch * rows.learned * base.vocabulary * 8
    return trained * (8 + memory.state(spec)) + activations + logits


def _remembered() -> Callable[[ModelSpec], Base | None]:
    known: dict[str, Base | None] = {}

    def read(model: ModelSpec) -> Base | None:
        key = repr(model)
        if key not in known:
            known[key] = bases.read(model)
        return known[key]

    return read
