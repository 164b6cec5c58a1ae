"""How many cells of a group run at once, and what that takes: estimates from files alone, before anything is loaded. Light.

Memory of a wave: PROCESS + the base once + for each cell
    adapter parameters × (4 weight + 4 gradient + the optimiser's state, 8 for Adam) bytes, and
    tokens of a batch × layers × (13 × hidden + 4 × inner) × bytes of a weight: what a layer keeps for its backward pass
    (two norms of 4 each, 5 around attention, whose scores are not kept; gate, up, their activation and product), with
    every row as long as `task.max_length` allows, and a row's logits in float32, twice, where all tokens are learned.
Measured on SmolLM2-135M, bfloat16: a further cell of a batch of 512 tokens took 470 MB, the formula says 460.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftrun import heads
from peftrun.errors import ConfigError
from peftrun.methods import LoraSpec
from peftrun.schema import ModelSpec, RunSpec
from peftrun.sweep import bases
from peftrun.sweep.bases import Base
from peftrun.sweep.cells import Cell
from peftrun.sweep.groups import Group

PROCESS = 900_000_000  # what a run holds beside base and cells, measured: 530 MB once the libraries are imported, 900 MB at its height
STATE = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_32bit": 4}  # bytes a parameter; else 8
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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
    memory = _bytes(memory_limit)
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


def _bytes(text: object) -> int | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)", str(text))
    unit = found[2].upper() if found else None
    return int(float(found[1]) * UNITS[unit]) if found and unit in UNITS else None


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
        own = allowed.memory or (available() if allowed.here and not bases.on_gpu(spec.device) else None)
        limit = limit or own
        for cells, memory in _fill(group.cells, base, Limits(own, allowed.cells)):
            waves.append(Wave(len(waves) + 1, number, cells, memory))
            if memory and own and memory > own:
                notes[_beyond(waves[-1], memory, own)] = None
    return Plan(list(groups), waves, limit, list(notes))


def _beyond(wave: Wave, memory: float, limit: float) -> str:
    return f"memory: wave {wave.number} may need {gigabytes(memory)} of {gigabytes(limit)}; a smaller trainer.per_device_train_batch_size needs less"


def _fill(cells: Sequence[Cell], base: Base | None, allowed: Limits) -> Iterator[tuple[list[Cell], float | None]]:
    waiting = list(cells)
    while waiting:
        taken, memory = [waiting.pop(0)], 0.0
        if base is not None:
            memory = shared_memory(base, _spec(taken[0])) + cell_memory(base, _spec(taken[0]))
        while waiting and (allowed.cells is None or len(taken) < allowed.cells):
            more = cell_memory(base, _spec(waiting[0])) if base is not None else 0.0
            if allowed.memory is not None and memory + more > allowed.memory:
                break
            taken.append(waiting.pop(0))
            memory += more
        yield taken, memory if base is not None else None


def _spec(cell: Cell) -> RunSpec:
    assert cell.spec is not None
    return cell.spec


def shared_memory(base: Base, spec: RunSpec) -> float:
    """Estimated bytes that a wave takes whatever its cells: the process, and the base once."""
    return PROCESS + base.bytes(bases.width(spec.device), spec.model.quantization)


def cell_memory(base: Base, spec: RunSpec) -> float:
    """Estimated bytes of one cell: its adapter with gradients and the optimiser's state, and the activations of its rows."""
    if isinstance(spec.lora, LoraSpec):
        trained = bases.adapter_parameters(base, spec.lora)
    else:  # another method: as large as the largest LoRA of rank 16, or, without an adapter, the whole model
        trained = 16 * sum(map(sum, base.linears.values())) if spec.lora.method != "none" else int(base.bytes(1, None))
    head = heads.of_task(spec.task)
    trained += len(head.labels) * base.hidden if head else 0
    tokens = spec.trainer.per_device_train_batch_size * spec.task.max_length
    kept = 2 * base.hidden if spec.trainer.gradient_checkpointing else 13 * base.hidden + 4 * base.inner
    activations = tokens * base.layers * kept * bases.width(spec.device)
    logits = tokens * base.vocabulary * 8 if spec.task.loss_on == "all" and head is None else 0
    return trained * (8 + STATE.get(spec.trainer.optim, 8)) + activations + logits


def _remembered() -> Callable[[ModelSpec], Base | None]:
    known: dict[str, Base | None] = {}

    def read(model: ModelSpec) -> Base | None:
        key = repr(model)
        if key not in known:
            known[key] = bases.read(model)
        return known[key]

    return read


def available() -> int | None:
    """Bytes of memory that this machine can give now; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def gigabytes(size: float) -> str:
    """A size in bytes for people (10⁹ bytes)."""
    return f"{size / 1e9:.2f} GB"
