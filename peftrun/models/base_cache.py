"""One base held between the runs of a process: a run gets a copy of its modules over the same weights, and none of its changes stay.

What a run does to the modules (adapters put into them, gradients asked for) is done to its copy. What it does to the weights themselves
(PiSSA moves part of them into the adapter, full fine-tuning trains them) is seen by a checksum, and the base is read again.
"""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from peftrun import console
from peftrun.artifacts.classifier_head import ClassifierHead
from peftrun.config.schema.run import ModelSpec
from peftrun.models import base as base_models
from peftrun.models.base import LoadedBase
from peftrun.models.device import Device


@dataclass
class _CachedBase:
    key: tuple[Any, ...]
    base: LoadedBase
    checksum: int


_CACHES: list[list[_CachedBase]] = []  # one for each block of `kept` that is open


@contextmanager
def keep_base_cached() -> Iterator[None]:
    """Inside, the base of one run is held for the next."""
    _CACHES.append([])
    try:
        yield
    finally:
        _CACHES.pop()
        gc.collect()


def load_cached_base(
    spec: ModelSpec, device: Device, dtype: torch.dtype | None = None, head: ClassifierHead | None = None
) -> LoadedBase:
    """What `model.load_base` gives; inside `kept`, from memory if the run before had the same base.

    Raises: see `model.load_base`.
    """
    if not _CACHES or not _is_cacheable(spec, device):
        return base_models.load_base(spec, device, dtype, head)
    place, key = _CACHES[-1], (spec, device.name, device.dtype, dtype, head)
    _evict_others(place, key)
    if not place:
        found = base_models.load_base(spec, device, dtype, head)
        if found.held:
            return found
        place.append(_CachedBase(key, found, compute_checksum(found.model)))
    else:
        console.print_info(f"base {place[0].base.name}: held in memory since an earlier run")
        asdict(spec)  # it was read by these values, which counts for this run too
    return replace(place[0].base, model=_copy_modules(place[0].base.model))


def cached_bytes() -> int:
    """What the weights of the base that is held take; the next run uses them, or they are given back."""
    held = _CACHES[-1][0].base.model.parameters() if _CACHES and _CACHES[-1] else ()
    return sum(one.nbytes for one in held)


def _is_cacheable(spec: ModelSpec, device: Device) -> bool:
    """Layers that wait elsewhere, and weights in few bits that are repacked while they are used, are read again each time."""
    return spec.quantization is None and device.max_memory is None and device.strategy is None


def _evict_others(place: list[_CachedBase], key: tuple[Any, ...]) -> None:
    gc.collect()  # adapters and gradients of the run before
    if place and (place[0].key != key or compute_checksum(place[0].base.model) != place[0].checksum):
        if place[0].key == key:
            console.print_info(f"base {place[0].base.name}: the run before has changed its weights; read again")
        place.clear()
        gc.collect()


def _copy_modules(net: Any) -> Any:
    """The same modules anew, over the same weights."""
    memo = {id(one): torch.nn.Parameter(one.data, requires_grad=False) for one in net.parameters()}
    return copy.deepcopy(net, memo)


def compute_checksum(net: Any) -> int:
    """A number that tells whether any weight has changed."""
    return sum((place + 1) * _sum_bytes(one.data) for place, one in enumerate(net.parameters()))


def _sum_bytes(values: torch.Tensor) -> int:
    flat = values.contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum(dtype=torch.int64))
