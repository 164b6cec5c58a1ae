"""The base model cached between the runs of a process. Each run gets a copy of its modules that shares the weights.

Changes to modules (injected adapters, requires_grad) affect the run's copy only. Changes to the weights themselves (PiSSA moves part of
them into the adapter, full fine-tuning trains them) are detected by a checksum, and the base model is read again.
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


_CACHES: list[list[_CachedBase]] = []  # a stack: one list (empty or of one base model) per open `keep_base_cached`


@contextmanager
def keep_base_cached() -> Iterator[None]:
    """Within the block, the base model of one run stays in memory for the next."""
    _CACHES.append([])
    try:
        yield
    finally:
        _CACHES.pop()
        gc.collect()


def load_cached_base(
    spec: ModelSpec, device: Device, dtype: torch.dtype | None = None, head: ClassifierHead | None = None
) -> LoadedBase:
    """What `base.load_base` returns; within `keep_base_cached`, from memory if the previous run had the same base model.

    Raises: see `base.load_base`.
    """
    # Not cached: offloaded layers, and quantized weights, which are repacked while they are used.
    cacheable = spec.quantization is None and device.max_memory is None and device.strategy is None
    if not _CACHES or not cacheable:
        return base_models.load_base(spec, device, dtype, head)
    cache, key = _CACHES[-1], (spec, device.name, device.dtype, dtype, head)
    gc.collect()  # adapters and gradients of the previous run
    if cache and (cache[0].key != key or compute_checksum(cache[0].base.model) != cache[0].checksum):
        if cache[0].key == key:
            console.print_info(f"base {cache[0].base.name}: the run before has changed its weights; read again")
        cache.clear()
        gc.collect()
    if not cache:
        base = base_models.load_base(spec, device, dtype, head)
        if base.held:  # quantized in its files
            return base
        cache.append(_CachedBase(key, base, compute_checksum(base.model)))
    else:
        console.print_info(f"base {cache[0].base.name}: held in memory since an earlier run")
        asdict(spec)  # reads every field, so that usage tracking does not report model.* as unused in this run
    net = cache[0].base.model
    # deepcopy takes what `memo` holds instead of copying it: new modules over the same storage
    memo = {id(weight): torch.nn.Parameter(weight.data, requires_grad=False) for weight in net.parameters()}
    return replace(cache[0].base, model=copy.deepcopy(net, memo))


def cached_bytes() -> int:
    """Bytes of the cached base model's weights; the next run uses them or frees them, so they count as free for it."""
    weights = _CACHES[-1][0].base.model.parameters() if _CACHES and _CACHES[-1] else ()
    return sum(weight.nbytes for weight in weights)


def compute_checksum(net: Any) -> int:
    """A number that changes when a weight changes. Wrapping int64 sums over the raw bytes: a fraction of a hash's time."""
    total = 0
    for position, weight in enumerate(net.parameters(), 1):  # times its position, so that swapped tensors differ
        data = weight.data.contiguous().view(-1).view(torch.uint8)  # (bytes,)
        aligned = data.numel() // 8 * 8
        body, tail = data[:aligned].view(torch.int64), data[aligned:]
        total += position * (int(body.sum()) + int(tail.sum(dtype=torch.int64)))
    return total
