"""The device of a run, with a dtype in which its base model fits there."""

from dataclasses import replace
from typing import Any, cast

from peftrun import console
from peftrun.artifacts import base_files, base_location
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config import usage
from peftrun.config.schema.run import RunSpec
from peftrun.models import base as base_models
from peftrun.models import base_cache, device, memory_check
from peftrun.models.device import Device
from peftrun.planning import memory_fit
from peftrun.planning.memory_fit import Headroom


def resolve_run_device(spec: RunSpec) -> Device:
    """What `device.resolve_device` returns, adjusted by `fit_device`.

    Raises: DeviceError, ModelError: see `device.resolve_device`, `base.resolve_base_dir`. MemoryShortageError: see `fit_device`.
    """
    return fit_device(device.resolve_device(spec.device), spec)


def fit_device(place: Device, spec: RunSpec) -> Device:
    """The device, in bfloat16 where `auto` chose float32 but that would double a half-precision base model and does not fit.

    Raises: MemoryShortageError: the run is a training, and takes more than the free memory.
    """
    base = (
        None
        if place.max_memory
        else base_files.read_folder_info(
            base_location.find_base_dir(spec.model) or base_models.resolve_base_dir(spec.model)
        )
    )
    if base is None:
        return place
    plain = usage.strip_tracking(spec)  # keys that only the estimate reads do not count as used by the run
    resolved = replace(plain, device=replace(plain.device, type=cast(Any, place.name)))
    if place.name == "cpu":
        resolved, shortage = memory_fit.choose_load_dtype(base, resolved, _get_headroom(place, resolved))
        place = place.with_bfloat16(f"float32 would take {shortage}") if shortage else place
        if spec.device.dtype == "auto":  # a typed dtype means: as typed, or not at all
            place = _offload_if_needed(place, base, resolved)
    if spec.action.name == "train":
        need = memory_fit.estimate_training(base, resolved)
        memory_check.refuse_shortage(
            memory_fit.state_training(spec), base, place, need, lambda: _get_headroom(place, resolved)
        )
    return place


def _offload_if_needed(place: Device, base: BaseModelInfo, spec: RunSpec) -> Device:
    """The device with part of the base model on disk if not all of it fits."""
    offload = memory_fit.choose_offload(base, spec, _get_headroom(place, spec)) if place.memory_check else None
    if offload is None:
        return place
    changed, shortage = offload
    console.print_warning(
        f"the base would take {shortage}: what does not fit waits on disk, from where each pass reads it; "
        "faster is more memory, or model.quantization=nf4"
    )
    limits: dict[str | int, str] = {key: size for key, size in (changed.device.max_memory or {}).items()}
    return place.offloaded(limits)


def _get_headroom(place: Device, spec: RunSpec) -> Headroom:
    """Free memory for one process of the run."""
    returned = base_cache.cached_bytes()  # a cached base model is either used by this run or freed
    if place.name in memory_check.GPU_TYPES:
        return memory_check.get_gpu_headroom(place.name, returned)
    return memory_fit.measure_headroom(spec.device.num_processes, returned)
