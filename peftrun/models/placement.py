"""The device of a run, with a dtype in which its base fits there."""

from dataclasses import replace
from typing import Any, cast

from peftrun import console
from peftrun.artifacts import base_files
from peftrun.artifacts.base_files import BaseModelInfo
from peftrun.config import usage
from peftrun.config.schema.run import RunSpec
from peftrun.models import base as base_models
from peftrun.models import base_cache, device, memory_check
from peftrun.models.device import Device
from peftrun.planning import memory_fit
from peftrun.planning.memory_fit import Headroom


def resolve_run_device(spec: RunSpec) -> Device:
    """What `device.resolve` gives, settled by what the run's base takes.

    Raises: DeviceError, ModelError: see `device.resolve`, `model.locate`. MemoryShortageError: see `settle`.
    """
    return fit_device(device.resolve_device(spec.device), spec)


def fit_device(place: Device, spec: RunSpec) -> Device:
    """The device with bfloat16 where `auto` was float32, which would double what the base's files hold and does not fit.

    Raises: MemoryShortageError: the run is a training, and takes more than is free.
    """
    base = (
        None
        if place.max_memory
        else base_files.read_folder_info(
            base_files.find_base_dir(spec.model) or base_models.resolve_base_dir(spec.model)
        )
    )
    if base is None:
        return place
    plain = usage.strip_tracking(spec)  # what is only estimated by is not used
    here = replace(plain, device=replace(plain.device, name=cast(Any, place.name)))
    if place.name == "cpu":
        here, short = memory_fit.choose_load_dtype(base, here, _get_headroom(place, here))
        place = place.with_bfloat16(f"float32 would take {short}") if short else place
        if spec.device.dtype == "auto":
            place = _offload_if_needed(place, base, here)
    if spec.action.name == "train":
        who = (
            f"each of {spec.device.processes} processes of this training"
            if spec.device.processes > 1
            else "this training"
        )
        need = memory_fit.estimate_training(base, here)
        memory_check.refuse_shortage(
            f"{who} takes, as action=plan estimates,", base, place, need, lambda: _get_headroom(place, here)
        )
    return place


def _offload_if_needed(place: Device, base: BaseModelInfo, spec: RunSpec) -> Device:
    """The device with part of the base on disk where it does not fit as a whole."""
    found = memory_fit.choose_offload(base, spec, _get_headroom(place, spec)) if place.memory_check else None
    if found is None:
        return place
    changed, short = found
    console.print_warning(
        f"the base would take {short}: what does not fit waits on disk, from where each pass reads it; "
        "faster is more memory, or model.quantization=nf4"
    )
    limits: dict[str | int, str] = {key: size for key, size in (changed.device.max_memory or {}).items()}
    return place.offloaded(limits)


def _get_headroom(place: Device, spec: RunSpec) -> Headroom:
    """What is free for a process of the run; the base that is held since an earlier run is used again, or given back."""
    returned = base_cache.cached_bytes()
    if place.name in memory_check.GPU_TYPES:
        return memory_check.get_gpu_headroom(place.name, returned)
    return memory_fit.measure_headroom(spec.device.processes, returned)
