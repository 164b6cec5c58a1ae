"""How many cells of a group run at once, and what that takes: estimates from files alone, before anything is loaded. Light.

A cell that runs by itself takes what `memory.of_run` says. Cells that are trained together take PROCESS + the base once + for each cell
    adapter parameters × (4 weight + 4 gradient + the optimiser's state, 8 for Adam) bytes, and
    tokens of a batch × layers × (13 × hidden + 4 × inner) × bytes of a weight: what a layer keeps for its backward pass
    (two norms of 4 each, 5 around attention, whose scores are not kept; gate, up, their activation and product), with
    every row as long as `task.max_length` allows, and a row's logits in float32, twice, where all tokens are learned.
Measured on SmolLM2-135M, bfloat16: a further cell of a batch of 512 tokens took 470 MB, the formula says 460.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from peftrun import heads
from peftrun.errors import ConfigError
from peftrun.schema import ModelSpec, RunSpec
from peftrun.sweep import bases, fitting, memory, parameters
from peftrun.sweep.bases import Base
from peftrun.sweep.cells import Cell
from peftrun.sweep.fitting import Headroom
from peftrun.sweep.groups import Group
from peftrun.system import free_memory
from peftrun.system.sizes import amount, gigabytes

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
    """What the user allows: bytes for a wave, cells in it; None: no limit. `here`: cells run on this machine, whose memory is one."""

    memory: int | None = None
    cells: int | None = None
    here: bool = True


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


def plan(groups: Sequence[Group], allowed: Limits) -> Plan:
    """Waves of every group: as many cells at once as the limits allow, at least one; the rest follow in later waves."""
    waves: list[Wave] = []
    notes: dict[str, None] = {}
    read: Callable[[ModelSpec], Base | None] = _remembered()
    limit = allowed.memory
    for number, group in enumerate(groups, 1):
        spec = group.cells[0].spec
        assert spec is not None
        base = read(spec.model)
        if base is None:
            notes[f"memory: not known for {bases.name_of(spec.model)}, whose files are not on this disk yet"] = None
        own = allowed.memory or (
            free_memory.available().bytes if allowed.here and not bases.on_gpu(spec.device) else None
        )
        limit = limit or own
        room = fitting.headroom() if allowed.here and base and not bases.on_gpu(spec.device) else None
        for cells, needed in _fill(group, base, Limits(own, allowed.cells), room):
            waves.append(Wave(len(waves) + 1, number, cells, needed))
            if needed and own and needed > own:
                notes[_beyond(waves[-1], needed, own)] = None
    return Plan(list(groups), waves, limit, list(notes))


def _beyond(wave: Wave, needed: float, limit: float) -> str:
    return f"memory: wave {wave.number} may need {gigabytes(needed)} of {gigabytes(limit)}; a smaller trainer.per_device_train_batch_size needs less"


def _fill(
    group: Group, base: Base | None, allowed: Limits, room: Headroom | None
) -> Iterator[tuple[list[Cell], float | None]]:
    if base is None:
        yield from ((cells, None) for cells in _by_number(group.cells, allowed.cells))
    elif group.reason:  # a cell by itself
        yield from (([cell], memory.of_run(base, _spec(cell, base, room)).peak) for cell in group.cells)
    else:
        yield from _by_memory(group.cells, base, allowed, room)


def _by_number(cells: Sequence[Cell], most: int | None) -> Iterator[list[Cell]]:
    size = most or max(1, len(cells))
    return (list(cells[start : start + size]) for start in range(0, len(cells), size))


def _by_memory(
    cells: Sequence[Cell], base: Base, allowed: Limits, room: Headroom | None
) -> Iterator[tuple[list[Cell], float]]:
    waiting = list(cells)
    while waiting:
        taken = [waiting.pop(0)]
        first = _spec(taken[0], base, room)
        needed = shared_memory(base, first) + cell_memory(base, first)
        while waiting and (allowed.cells is None or len(taken) < allowed.cells):
            more = cell_memory(base, _spec(waiting[0], base, room))
            if allowed.memory is not None and needed + more > allowed.memory:
                break
            taken.append(waiting.pop(0))
            needed += more
        yield taken, needed


def _spec(cell: Cell, base: Base, room: Headroom | None) -> RunSpec:
    """The cell's run, with the dtype that it will have on this machine. `room`: None where cells run elsewhere."""
    assert cell.spec is not None
    return fitting.settled(base, cell.spec, room)[0] if room else cell.spec


def shared_memory(base: Base, spec: RunSpec) -> float:
    """Estimated bytes that a wave takes whatever its cells: the process, and the base once."""
    return PROCESS + base.bytes(bases.width(spec.device), spec.model.quantization)


def cell_memory(base: Base, spec: RunSpec) -> float:
    """Estimated bytes of one cell among others: its adapter with gradients and the optimiser's state, and the activations of its rows."""
    trained = parameters.count(base, spec.lora, spec.task).trained
    tokens = spec.trainer.per_device_train_batch_size * spec.task.max_length
    activations = tokens * base.layers * (13 * base.hidden + 4 * base.inner) * bases.width(spec.device)
    logits = tokens * base.vocabulary * 8 if spec.task.loss_on == "all" and heads.of_task(spec.task) is None else 0
    return trained * (8 + memory.state(spec)) + activations + logits


def _remembered() -> Callable[[ModelSpec], Base | None]:
    known: dict[str, Base | None] = {}

    def read(model: ModelSpec) -> Base | None:
        key = repr(model)
        if key not in known:
            known[key] = bases.read(model)
        return known[key]

    return read
