"""Refuses what does not fit into memory before it is loaded, rather than being killed while loading."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from peftrun import console
from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import MemoryShortageError
from peftrun.models.device import Device
from peftrun.planning import memory_fit
from peftrun.planning.memory_fit import Headroom, MemoryNeed
from peftrun.system import malloc
from peftrun.system.free_memory import FreeMemory

GPU_TYPES = ("cuda", "xpu")  # devices with memory of their own; mps shares the machine's


def check_load_memory(folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype) -> None:
    """Returns if the base model in `folder` fits in `dtype`, or its size cannot be read from its files.

    Raises: MemoryShortageError: it does not fit into the free memory, of the device or of the host while it is loaded.
    """
    base = base_files.read_folder_info(folder)
    if base is None:
        return
    statement = memory_fit.state_load(base, spec, str(dtype).removeprefix("torch."))
    on_gpu = device.name in GPU_TYPES
    if on_gpu and device.max_memory is None:
        need = memory_fit.estimate_load(base, dtype.itemsize, spec, device.max_memory, gpu=True)
        refuse_shortage(statement, base, device, need, lambda: get_gpu_headroom(device.name))
    # Weights that need no conversion go to the GPU straight from the memory-mapped files.
    if not on_gpu or base.stored != base.bytes(dtype.itemsize, spec.quantization):
        need = memory_fit.estimate_load(base, dtype.itemsize, spec, device.max_memory, gpu=False)
        refuse_shortage(statement, base, device, need, memory_fit.measure_headroom)


def refuse_shortage(
    statement: str, base: BaseModelInfo, device: Device, need: MemoryNeed, measure: Callable[[], Headroom]
) -> None:
    """Compares `need` with what `measure` finds free; with device.memory_check=false a shortage is only a warning.

    Raises: MemoryShortageError: `need` is larger, even after this process has released its unused memory.
    """
    if measure().describe_shortage(need) is None:
        return
    gc.collect()
    malloc.release_freed_memory()
    headroom = measure()
    shortage = headroom.describe_shortage(need)
    if shortage is None:
        return
    line = f"{statement} {shortage}"
    _refuse_or_warn(line, device, memory_fit.build_shortage_error(line, base, headroom, device.name))


def check_gpu_memory(statement: str, device: Device, size: float) -> None:
    """Compares `size` bytes with what is free on a GPU that computes without the base model on it.

    Raises: MemoryShortageError: `size` is larger; the same can be computed on the CPU.
    """
    shortage = get_gpu_headroom(device.name).describe_shortage(MemoryNeed(size, size))
    if shortage is None:
        return
    line = f"device={device.name}: {statement} {shortage}"
    _refuse_or_warn(line, device, MemoryShortageError(memory_fit.format_refusal(line, ["device=cpu"])))


def _refuse_or_warn(line: str, device: Device, refusal: MemoryShortageError) -> None:
    if device.memory_check:
        raise refusal
    console.print_warning(f"{line}; goes on, as device.memory_check=false asks")


def get_gpu_headroom(name: str, returned: int = 0) -> Headroom:
    """Free memory of the current GPU, torch's unused cache included. `returned`: bytes that will be freed before they are needed."""
    gpu = torch.get_device_module(name)
    free, _ = gpu.mem_get_info()
    unused = gpu.memory_reserved() - gpu.memory_allocated()  # cached by torch's allocator, not free for the driver
    return Headroom((FreeMemory(free + unused + returned, "on this GPU"),))
