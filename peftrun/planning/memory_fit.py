"""Whether a base model or a training run fits into memory, which dtype `auto` then means, and overrides that would make it fit. Light."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psutil

from peftrun.artifacts import base_files, base_location
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.checks import cross_group
from peftrun.config.schema.run import ModelSpec, RunSpec
from peftrun.errors import MemoryShortageError
from peftrun.formatting import format_bytes, parse_bytes
from peftrun.planning import memory
from peftrun.system import environment, free_memory
from peftrun.system.free_memory import FreeMemory

GO_ON = "device.memory_check=false to go on all the same"
FULL_PRECISION = ("merge", "unmerge", "extract", "combine")  # actions that ignore model.quantization
IN_FLOAT32 = ("merge", "unmerge")  # actions that ignore device.dtype
# Actions that load the whole base model.
LOADING = ("train", "evaluate", "generate", "serve", "save", "extract", "combine")
OFFLOADED = 0.5  # share of the free memory for the weights of an offloaded base model; its inputs and largest layer need the rest
Choice = tuple[str, RunSpec]  # what to type, and the run with it


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a whole process. `mapped`: its address space, which includes files while they are read."""

    resident: float
    mapped: float


@dataclass(frozen=True)
class Headroom:
    """Memory that a process may use under every limit. `in_use`: bytes that it uses already and that a `MemoryNeed` includes."""

    limits: tuple[FreeMemory, ...]
    in_use: int = 0

    def describe_shortage(self, need: MemoryNeed) -> str | None:
        """Text such as `about 15.20 GB, of 8.30 GB free`; None: it fits."""
        for free in self.limits:
            missing = (need.mapped if free.counts_mapped else need.resident) - self.in_use
            if missing > free.bytes:
                files = " with its files" if free.counts_mapped else ""
                return f"about {format_bytes(missing)}{files}, of {free}"
        return None


def measure_headroom(processes: int = 1, returned: int = 0) -> Headroom:
    """Headroom of each of `processes` processes on this machine. `returned`: bytes that this process frees first."""
    in_use = min(psutil.Process().memory_info().rss, memory.PROCESS)
    # A limit on address space (`ulimit -v`) holds for each process; the others are shared.
    shares = (
        dataclasses.replace(limit, bytes=(limit.bytes + returned) // (1 if limit.counts_mapped else processes))
        for limit in free_memory.list_memory_limits()
    )
    return Headroom(tuple(shares), in_use)


def estimate_load(
    base: BaseModelInfo, width: int, model: ModelSpec, limits: Mapping[Any, str] | None, gpu: bool
) -> MemoryNeed:
    """Memory of a process with the base model in weights of `width` bytes. `limits`: device.max_memory; weights offloaded to disk do not count."""
    weights, process = base.bytes(width, model.quantization), 0 if gpu else memory.PROCESS
    if limits is not None:
        resident = process + min(weights, parse_bytes(limits.get("cpu")) or 0)
        return MemoryNeed(resident, resident)
    return MemoryNeed(process + weights, process + weights + base.stored)


def estimate_training(base: BaseModelInfo, spec: RunSpec) -> MemoryNeed:
    """Peak of a training run, as action=plan estimates it. On a GPU only the parts that need no measured constants."""
    estimate = memory.estimate_memory(base, spec)
    if base_files.uses_gpu(spec.device):
        static = estimate.weights + estimate.adapter + estimate.learning
        return MemoryNeed(static, static)
    return MemoryNeed(estimate.peak, max(estimate.peak, memory.IMPORTED + estimate.weights + base.stored))


def estimate_run(base: BaseModelInfo, spec: RunSpec) -> MemoryNeed:
    """Memory of a run, as far as it is known before it starts."""
    if spec.action.name == "train":
        return estimate_training(base, spec)
    width = 4 if spec.action.name in IN_FLOAT32 else base_files.weight_bytes(spec.device)
    return estimate_load(base, width, spec.model, spec.device.max_memory, base_files.uses_gpu(spec.device))


def check_before_import(spec: RunSpec) -> None:
    """Refuses a run on a CPU by the headers of its base model's files, before torch is imported, which takes seconds.

    Returns if it fits, or if that is known only once torch is there.
    Raises: MemoryShortageError: it is larger than the free memory.
    """
    device, action = spec.device, spec.action
    loads = action.name in LOADING or (action.name == "reload" and action.evaluate)
    on_cpu = device.type == "cpu" or (device.type == "auto" and not environment.may_have_gpu())
    if not (loads and on_cpu and device.memory_check) or device.max_memory or "torch" in sys.modules:
        return
    folder = base_location.find_base_dir(spec.model)
    base = base_files.read_folder_info(folder) if folder else None
    if base is None:
        return
    headroom = measure_headroom(device.num_processes)
    if action.name == "train":
        spec, _ = choose_load_dtype(base, spec, headroom)
        statement = state_training(spec)
    elif device.dtype == "auto":
        return  # is loaded in bfloat16, or offloaded
    else:
        statement = state_load(base, spec.model, device.dtype)
    shortage = headroom.describe_shortage(estimate_run(base, spec))
    if shortage:
        raise build_shortage_error(f"{statement} {shortage}", base, headroom, "cpu")


def state_load(base: BaseModelInfo, model: ModelSpec, dtype: str) -> str:
    """Beginning of a refusal to load a base model, up to its size."""
    stored = f"{base.stored / base.parameters:.1f} bytes a weight" if base.quantized else dtype
    return f"base {base_files.format_base_name(model)}: in {model.quantization or stored} it takes"


def state_training(spec: RunSpec) -> str:
    """Beginning of a refusal of a training, up to its size."""
    processes = spec.device.num_processes
    subject = f"each of {processes} processes of this training" if processes > 1 else "this training"
    return f"{subject} takes, as action=plan estimates,"


def choose_load_dtype(base: BaseModelInfo, spec: RunSpec, headroom: Headroom) -> tuple[RunSpec, str | None]:
    """The run with device.dtype=bfloat16, and the shortage, if `auto` would load 2-byte files in float32 and that does not fit.

    Otherwise the run as it is, and None.
    """
    # In full fine-tuning bfloat16 would round small updates away.
    is_full_finetuning = spec.action.name == "train" and spec.lora.method == "none"
    is_half_on_device = base_files.weight_bytes(spec.device) == 2
    if spec.device.dtype != "auto" or is_full_finetuning or not base.is_half_precision or is_half_on_device:
        return spec, None
    shortage = headroom.describe_shortage(estimate_run(base, _replace_values(spec, device={"dtype": "float32"})))
    return (_replace_values(spec, device={"dtype": "bfloat16"}), shortage) if shortage else (spec, None)


def build_headroom(free: int) -> Headroom:
    """Headroom of `free` bytes, for a process that uses none of them yet."""
    return Headroom((FreeMemory(free),))


def suggest_overrides(base: BaseModelInfo, spec: RunSpec, headroom: Headroom) -> list[str]:
    """Valid overrides of this run, each of which alone would make it fit."""
    dtypes: list[Choice] = []
    if base_files.weight_bytes(spec.device) == 4 and spec.action.name not in IN_FLOAT32:
        dtypes.append(("device.dtype=bfloat16", _replace_values(spec, device={"dtype": "bfloat16"})))
    if spec.model.quantization is None and not base.quantized and spec.action.name not in FULL_PRECISION:
        dtypes.append(("model.quantization=nf4", _replace_values(spec, model={"quantization": "nf4"})))
    if spec.action.name == "train":
        choices = chain(iter_smaller_steps(base, spec, headroom), dtypes)
    else:
        choices = chain(dtypes, _iter_offload_choices(spec, headroom))
    return [override for override, _ in _filter_choices(base, spec, headroom, choices)]


def choose_offload(base: BaseModelInfo, spec: RunSpec, headroom: Headroom) -> tuple[RunSpec, str] | None:
    """The run with part of its base model offloaded to disk, and the shortage without; None: it fits, or cannot be offloaded."""
    shortage = headroom.describe_shortage(estimate_run(base, spec))
    if shortage is None or spec.action.name == "train":
        return None
    choice = next(_filter_choices(base, spec, headroom, _iter_offload_choices(spec, headroom)), None)
    return (choice[1], shortage) if choice else None


def _filter_choices(
    base: BaseModelInfo, spec: RunSpec, headroom: Headroom, choices: Iterable[Choice]
) -> Iterator[Choice]:
    """Choices with which the run would fit and that violate no further rule between keys."""
    problems = set(cross_group.check_groups(_get_groups(spec)))
    for override, changed in choices:
        fits = headroom.describe_shortage(estimate_run(base, changed)) is None
        if fits and not set(cross_group.check_groups(_get_groups(changed))) - problems:
            yield override, changed


def iter_smaller_steps(base: BaseModelInfo, spec: RunSpec, headroom: Headroom) -> Iterator[Choice]:
    """The largest smaller batch size with which a training run would fit, and gradient checkpointing if it is off."""
    batch = spec.trainer.per_device_train_batch_size
    for size in (batch >> halvings for halvings in range(1, batch.bit_length())):
        changed = _replace_values(spec, trainer={"per_device_train_batch_size": size})
        if headroom.describe_shortage(estimate_run(base, changed)) is None:
            yield f"trainer.per_device_train_batch_size={size}", changed
            break
    if not spec.trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing=true", _replace_values(spec, trainer={"gradient_checkpointing": True})


def _iter_offload_choices(spec: RunSpec, headroom: Headroom) -> Iterator[Choice]:
    # Offloaded weights are memory-mapped, which a limit on address space counts; on a GPU the user sets device.max_memory.
    if any(free.counts_mapped for free in headroom.limits) or base_files.uses_gpu(spec.device):
        return
    size = int(min(free.bytes for free in headroom.limits) * OFFLOADED / 1e6)
    limits = {"cpu": f"{size}MB"}
    yield (
        f"device=offload '++device.max_memory={{cpu: {size}MB}}'",
        _replace_values(spec, device={"max_memory": limits}),
    )


def _replace_values(spec: RunSpec, **groups: dict[str, Any]) -> RunSpec:
    return dataclasses.replace(
        spec, **{name: dataclasses.replace(getattr(spec, name), **values) for name, values in groups.items()}
    )


def _get_groups(spec: RunSpec) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def build_shortage_error(statement: str, base: BaseModelInfo, headroom: Headroom, device: str) -> MemoryShortageError:
    """The refusal of a run on `device` (its type), from which `suggest_on_shortage` derives what to type. `statement`: sizes needed and free."""
    return MemoryShortageError(
        format_refusal(statement), statement=statement, base=base, headroom=headroom, device=device
    )


def format_refusal(statement: str, choices: Sequence[str] = ()) -> str:
    """One line: what does not fit, and the overrides to type."""
    return f"{statement}; type {', '.join(choices)}{', or ' if choices else ''}{GO_ON}"


@contextmanager
def suggest_on_shortage(spec: RunSpec) -> Iterator[None]:
    """Adds overrides that this run could use to a MemoryShortageError raised inside. Raises: MemoryShortageError."""
    try:
        yield
    except MemoryShortageError as error:
        if error.base is None:
            raise
        resolved = _replace_values(spec, device={"type": error.device})  # device=auto resolved where it was loaded
        suggestions = suggest_overrides(error.base, resolved, error.headroom)
        raise MemoryShortageError(format_refusal(error.statement, suggestions)) from error
