"""Training in several processes: which one writes, how they wait for each other, and sharded parameters."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list

from peftrun.adapters import sharded
from peftrun.compat.accelerate import enable_fsdp
from peftrun.compat.peft import get_base_model
from peftrun.compat.transformers import generate_in_step, list_layer_classes
from peftrun.errors import ConfigError

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


def prepare_sharding(trainer: Any) -> None:
    """With FSDP: makes accelerate shard on CPUs too, where it silently drops it, though FSDP2 works; and generation wait for all processes."""
    if trainer.args.fsdp_plugin_args is None:
        return
    model, state = trainer.model, trainer.accelerator.state
    generate_in_step(get_base_model(model))
    if state.distributed_type == DistributedType.MULTI_CPU:
        enable_fsdp(state, FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args))
        trainer.is_fsdp_enabled = True
    _keep_embeddings_apart(state.fsdp_plugin, model)


def _keep_embeddings_apart(plugin: Any, model: Any) -> None:
    """Makes accelerate 1.15 shard the embeddings once: it does so by themselves, and again in a block that holds them (BERT's).

    Those of an encoder-decoder are in more modules than it takes together; they stay whole in each process.
    Raises: ConfigError: they are trained; the processes would learn different ones.
    """
    embeddings = model.get_input_embeddings()
    blocks = {type(module).__name__ for module in model.modules() if embeddings in [*module.modules()]}
    plugin.transformer_cls_names_to_wrap = [name for name in list_layer_classes(model) if name not in blocks]
    if not model.config.is_encoder_decoder:
        return
    if any(parameter.requires_grad for parameter in embeddings.parameters()):
        raise ConfigError(
            "device.strategy=fsdp: the embeddings that encoder and decoder share cannot be sharded, so they cannot be trained; type device=ddp, or "
            "leave them out of lora.target_modules"
        )
    plugin.ignored_modules = [embeddings]


def rebuild_whole(model: Any, build: Callable[[], Any]) -> Any:
    """In the main process what `build` returns, the same model on a whole base, with the trained weights of the sharded `model`.

    They are gathered one by one: a collective operation, so all processes must call it. The others get `model` back.
    """
    whole = build() if is_main_process() else model
    targets = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensor = sharded.gather_tensor(parameter)
            if is_main_process():
                sharded.copy_tensor(targets[name], tensor)
    return whole
