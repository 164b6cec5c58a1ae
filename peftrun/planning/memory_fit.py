"""Whether a base or a training fits into memory, which dtype `auto` then means, and what to type where it does not fit. Light."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.checks import cross_group
from peftrun.config.schema.run import ModelSpec, RunSpec
from peftrun.errors import MemoryShortageError
from peftrun.planning import memory
from peftrun.system import free_memory
from peftrun.system.free_memory import FreeMemory
from peftrun.system.sizes import format_gigabytes, parse_size

GO_ON = "device.memory_check=false to go on all the same"
FULL_PRECISION = ("merge", "unmerge", "extract", "combine")  # actions that ignore model.quantization
IN_FLOAT32 = ("merge", "unmerge")  # actions that ignore device.dtype
OFFLOADED = (
    0.5  # share of the free memory that is named for an offloaded base; its inputs and largest layer need the rest
)
MIB = 1 << 20
Choice = tuple[str, RunSpec]  # what to type, and the run with it


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a whole process. `mapped`: address space, in which files count while they are read."""

    resident: float
    mapped: float


@dataclass(frozen=True)
class Headroom:
    """What a process may take under every limit. `held`: bytes that it holds already and a need counts too."""

    limits: tuple[FreeMemory, ...]
    held: int = 0

    def describe_shortage(self, need: MemoryNeed) -> str | None:
        """`about 15.20 GB, of 8.30 GB free`; None: it fits."""
        for free in self.limits:
            more = (need.mapped if free.counts_mapped else need.resident) - self.held
            if more > free.bytes:
                files = " with its files" if free.counts_mapped else ""
                return f"about {format_gigabytes(more)}{files}, of {free}"
        return None


def measure_headroom(processes: int = 1, returned: int = 0) -> Headroom:
    """That of each of so many processes on this machine. `returned`: bytes that this one gives back first."""
    held = min(psutil.Process().memory_info().rss, memory.PROCESS)
    shared = (
        dataclasses.replace(one, bytes=(one.bytes + returned) // (1 if one.counts_mapped else processes))
        for one in free_memory.list_memory_limits()
    )
    return Headroom(tuple(shared), held)


def estimate_load(
    base: BaseModelInfo, width: int, model: ModelSpec, limits: Mapping[Any, str] | None, gpu: bool
) -> MemoryNeed:
    """What a process takes that holds the base in weights of `width` bytes. `limits`: of an offloaded one; what waits on disk does not count."""
    weights, process = base.bytes(width, model.quantization), 0 if gpu else memory.PROCESS
    if limits is not None:
        kept = process + min(weights, parse_size(limits.get("cpu")) or 0)
        return MemoryNeed(kept, kept)
    return MemoryNeed(process + weights, process + weights + base.stored)


def estimate_training(base: BaseModelInfo, spec: RunSpec) -> MemoryNeed:
    """The height of a training by itself, as action=plan estimates it. On a GPU, where nothing of it was measured, only what is sure."""
    found = memory.estimate_memory(base, spec)
    if base_files.uses_gpu(spec.device):
        sure = found.weights + found.adapter + found.learning
        return MemoryNeed(sure, sure)
    return MemoryNeed(found.peak, max(found.peak, memory.IMPORTED + found.weights + base.stored))


def estimate_run(base: BaseModelInfo, spec: RunSpec) -> MemoryNeed:
    """What the run takes, as far as it is known before it is begun."""
    if spec.action.name == "train":
        return estimate_training(base, spec)
    width = 4 if spec.action.name in IN_FLOAT32 else base_files.weight_bytes(spec.device)
    return estimate_load(base, width, spec.model, spec.device.max_memory, base_files.uses_gpu(spec.device))


def choose_load_dtype(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> tuple[RunSpec, str | None]:
    """The run with device.dtype=bfloat16 where `auto` would be float32, which would double what the files hold and does not fit;
    with what float32 is short of. Else the run as it is, and None.
    """
    whole = spec.action.name == "train" and spec.lora.method == "none"  # bfloat16 would round its small updates away
    if spec.device.dtype != "auto" or whole or not base.is_half_precision or base_files.weight_bytes(spec.device) == 2:
        return spec, None
    short = room.describe_shortage(estimate_run(base, _replace_values(spec, device={"dtype": "float32"})))
    return (_replace_values(spec, device={"dtype": "bfloat16"}), short) if short else (spec, None)


def build_headroom(free: int) -> Headroom:
    """So many bytes, for a process that holds none of them yet."""
    return Headroom((FreeMemory(free),))


def suggest_overrides(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> list[str]:
    """Overrides that are possible in this run and with each of which it would fit."""
    tried = (_iter_training_choices if spec.action.name == "train" else _iter_inference_choices)(base, spec, room)
    return [typed for typed, _ in _filter_choices(base, spec, room, tried)]


def choose_offload(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> tuple[RunSpec, str] | None:
    """The run with a base that waits on disk in part, and what it is short of without; None: it fits, or its base cannot wait there."""
    short = room.describe_shortage(estimate_run(base, spec))
    if short is None or spec.action.name == "train":
        return None
    changed = next(_filter_choices(base, spec, room, _iter_offload_choices(spec, room)), None)
    return (changed[1], short) if changed else None


def _filter_choices(base: BaseModelInfo, spec: RunSpec, room: Headroom, tried: Iterable[Choice]) -> Iterator[Choice]:
    """Those that keep every rule between keys and with which the run would fit."""
    problems = set(cross_group.check_groups(_get_groups(spec)))
    for typed, changed in tried:
        if (
            room.describe_shortage(estimate_run(base, changed)) is None
            and not set(cross_group.check_groups(_get_groups(changed))) - problems
        ):
            yield typed, changed


def _iter_training_choices(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> Iterator[Choice]:
    yield from iter_smaller_steps(base, spec, room)
    yield from _iter_dtype_choices(base, spec)


def iter_smaller_steps(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> Iterator[Choice]:
    """The largest smaller batch with which a training would fit, and checkpointed activations where they are not."""
    batch = spec.trainer.per_device_train_batch_size
    for size in (batch >> halvings for halvings in range(1, batch.bit_length())):
        changed = _replace_values(spec, trainer={"per_device_train_batch_size": size})
        if room.describe_shortage(estimate_run(base, changed)) is None:
            yield f"trainer.per_device_train_batch_size={size}", changed
            break
    if not spec.trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing=true", _replace_values(spec, trainer={"gradient_checkpointing": True})


def _iter_inference_choices(base: BaseModelInfo, spec: RunSpec, room: Headroom) -> Iterator[Choice]:
    yield from _iter_dtype_choices(base, spec)
    yield from _iter_offload_choices(spec, room)


def _iter_offload_choices(spec: RunSpec, room: Headroom) -> Iterator[Choice]:
    if any(free.counts_mapped for free in room.limits) or base_files.uses_gpu(spec.device):
        return  # what waits on disk is mapped, which such a limit counts; and what is on a GPU is chosen by hand
    size = int(min(free.bytes for free in room.limits) * OFFLOADED) // MIB
    limits = {"cpu": f"{size}MiB"}
    yield (
        f"device=offload '++device.max_memory={{cpu: {size}MiB}}'",
        _replace_values(spec, device={"max_memory": limits}),
    )


def _iter_dtype_choices(base: BaseModelInfo, spec: RunSpec) -> Iterator[Choice]:
    if base_files.weight_bytes(spec.device) == 4 and spec.action.name not in IN_FLOAT32:
        yield "device.dtype=bfloat16", _replace_values(spec, device={"dtype": "bfloat16"})
    if spec.model.quantization is None and not base.quantized and spec.action.name not in FULL_PRECISION:
        yield "model.quantization=nf4", _replace_values(spec, model={"quantization": "nf4"})


def _replace_values(spec: RunSpec, **groups: dict[str, Any]) -> RunSpec:
    return dataclasses.replace(
        spec, **{name: dataclasses.replace(getattr(spec, name), **values) for name, values in groups.items()}
    )


def _get_groups(spec: RunSpec) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def format_refusal(statement: str, choices: Sequence[str] = ()) -> str:
    """One line: what does not fit, and what to type."""
    return f"{statement}; type {', '.join(choices)}{', or ' if choices else ''}{GO_ON}"


@contextmanager
def suggest_on_shortage(spec: RunSpec) -> Iterator[None]:
    """A base that is refused inside is told with what this run can do about it. Raises: MemoryShortageError: it is refused."""
    try:
        yield
    except MemoryShortageError as error:
        if error.base is None:
            raise
        here = _replace_values(spec, device={"name": error.device})
        raise MemoryShortageError(
            format_refusal(error.statement, suggest_overrides(error.base, here, error.room))
        ) from error
