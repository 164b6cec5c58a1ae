"""What will not fit into memory is refused before it is loaded, rather than killed while it is."""

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

GPU_TYPES = ("cuda", "xpu")  # whose memory is their own


def check_load_memory(folder: Path, spec: ModelSpec, device: Device, dtype: torch.dtype) -> None:
    """Nothing where the base in `folder`, held in `dtype`, fits, or its files do not tell how large it is.

    Raises: MemoryShortageError: it does not fit into what is free now, on the device or on its way there.
    """
    base = base_files.read_folder_info(folder)
    if base is None:
        return
    held_in = spec.quantization or (
        f"{base.stored / base.parameters:.1f} bytes a weight" if base.quantized else str(dtype).removeprefix("torch.")
    )
    statement = f"base {base_files.format_base_name(spec)}: in {held_in} it takes"
    on_gpu = device.name in GPU_TYPES
    if on_gpu and device.max_memory is None:
        need = memory_fit.estimate_load(base, dtype.itemsize, spec, device.max_memory, gpu=True)
        refuse_shortage(statement, base, device, need, lambda: get_gpu_headroom(device.name))
    if not on_gpu or base.stored != base.bytes(dtype.itemsize, spec.quantization):  # else it passes from its files
        need = memory_fit.estimate_load(base, dtype.itemsize, spec, device.max_memory, gpu=False)
        refuse_shortage(statement, base, device, need, memory_fit.measure_headroom)


def refuse_shortage(
    statement: str, base: BaseModelInfo, device: Device, need: MemoryNeed, measure: Callable[[], Headroom]
) -> None:
    """Says so and goes on where device.memory_check=false. `measure`: what is free now.

    Raises: MemoryShortageError: the need is larger, also once this process has given back what it does not use.
    """
    if measure().describe_shortage(need) is None:
        return
    gc.collect()
    malloc.release_freed_memory()
    room = measure()
    short = room.describe_shortage(need)
    if short is None:
        return
    line = f"{statement} {short}"
    if not device.memory_check:
        console.print_warning(f"{line}; goes on, as device.memory_check=false asks")
        return
    raise MemoryShortageError(memory_fit.format_refusal(line), statement=line, base=base, room=room, device=device.name)


def get_gpu_headroom(name: str, returned: int = 0) -> Headroom:
    """What the current GPU can still give, with what torch keeps for itself and does not use. `returned`: bytes given back first."""
    gpu = torch.get_device_module(name)
    free, _ = gpu.mem_get_info()
    unused = gpu.memory_reserved() - gpu.memory_allocated()
    return Headroom((FreeMemory(free + unused + returned, "on this GPU"),))
