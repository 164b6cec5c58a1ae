"""Training in several processes: which one writes, how they wait for each other, and sharded parameters."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list

from peftrun.compat.accelerate import enable_fsdp

T = TypeVar("T")

PROCESS_GROUP_TIMEOUT = timedelta(hours=6)  # the other processes wait while the main process evaluates


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def init_process_group(device: str) -> None:
    """Joins the other processes, each on a device of its own. Must be called before any tensor is put on a device."""
    if is_distributed():
        PartialState(cpu=device == "cpu", timeout=PROCESS_GROUP_TIMEOUT)


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block first, then the others do."""
    if is_distributed() and not is_main_process():
        wait_for_everyone()
    yield
    if is_distributed() and is_main_process():
        wait_for_everyone()


def wait_for_everyone() -> None:
    """Returns once every process has called it."""
    if is_distributed():
        torch.distributed.barrier()


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """What `compute` returns in the main process, in every process; it is called there alone, and acts as a barrier."""
    if not is_distributed():
        return compute()
    values = [compute() if is_main_process() else None]
    broadcast_object_list(values)
    return values[0]  # type: ignore[return-value]


def shard_on_cpu(trainer: Any) -> None:
    """Makes accelerate shard on CPUs too: it silently drops FSDP there, though FSDP2 works."""
    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    plugin.set_auto_wrap_policy(trainer.model)
    enable_fsdp(state, plugin)
    trainer.is_fsdp_enabled = True


def gather_trained(model: Any) -> dict[str, torch.Tensor]:
    """Name → whole trained tensor, on the CPU. A collective operation: each process has only a shard, so all must call it."""
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


@torch.no_grad()
def load_trained(model: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The model with its trained parameters set to `tensors`."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
    return model
