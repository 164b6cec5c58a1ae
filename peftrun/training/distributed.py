"""Processes that train together: which of them writes, how they wait for each other, and what is sharded over them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list

T = TypeVar("T")

PATIENCE = timedelta(hours=6)  # the others wait while the first one evaluates


def together() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def meet(device: str) -> None:
    """Joins the other processes, each on a device of its own. Called before anything is put on a device."""
    if together():
        PartialState(cpu=device == "cpu", timeout=PATIENCE)


@contextmanager
def main_first() -> Iterator[None]:
    """The writing process runs the block, then the others do."""
    if together() and not is_main():
        wait()
    yield
    if together() and is_main():
        wait()


def wait() -> None:
    """Returns once every process is here."""
    if together():
        torch.distributed.barrier()


def of_main(find: Callable[[], T]) -> T:
    """What the writing process finds, in every process; when it is there, none has gone on."""
    if not together():
        return find()
    found = [find() if is_main() else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def shard_on_cpu(trainer: Any) -> None:
    """Has accelerate shard on processors too: it leaves FSDP out there without a word, though FSDP2 works."""
    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    plugin.set_auto_wrap_policy(trainer.model)
    type(state)._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    trainer.is_fsdp_enabled = True


def gathered(model: Any) -> dict[str, torch.Tensor]:
    """What was trained, whole, on the CPU: every process must call it, each holds a slice."""
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


@torch.no_grad()
def filled(model: Any, values: dict[str, torch.Tensor]) -> Any:
    """The model with its trained parameters set to `values`."""
    own = dict(model.named_parameters())
    for name, value in values.items():
        own[name].copy_(value)
    return model
