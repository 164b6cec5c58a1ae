"""What must hold between the device, its processes and what runs on them; light."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.config.paths import no_file
from peftrun.config.schema.lora import AdaLoraSpec, NoAdapter

Lines = Iterator[str]


def check_strategy(device: Any, action: Any) -> Lines:
    """A strategy, several processes, and an action that can be spread go together."""
    if device.strategy is None:
        for key in ("processes", "machines"):
            if getattr(device, key) > 1:
                yield f"device.{key}={getattr(device, key)}: needs to be told how the work is shared; type device=ddp device.{key}={getattr(device, key)}"
        return
    if action.name not in ("train", "plan", "preview", "explain"):
        yield f"device.strategy={device.strategy}: action={action.name} runs in one process; type device=auto"
    if device.processes * device.machines < 2:
        yield f"device.processes=1: device.strategy={device.strategy} shares the work between several; type device.processes=2"
    if device.machines > 1 and device.main_address is None:
        yield "device.main_address is not set; several machines meet at the first one: type device.main_address=HOST"
    if device.machine_rank >= device.machines:
        yield f"device.machine_rank={device.machine_rank}: must be below device.machines={device.machines}; type device.machine_rank=0"


def check_deepspeed(device: Any) -> Lines:
    """DeepSpeed is there, and has its file."""
    if device.strategy != "deepspeed":
        return
    if find_spec("deepspeed") is None:
        yield "device.strategy=deepspeed needs package=deepspeed: this package is not installed; type `pip install deepspeed`, or device=fsdp"
    if device.deepspeed_config is None:
        yield "device.deepspeed_config is not set; DeepSpeed is set up by a JSON file: type device.deepspeed_config=FILE.json"
    elif not Path(device.deepspeed_config).expanduser().is_file():
        yield f"device.deepspeed_config={device.deepspeed_config}: {no_file(device.deepspeed_config)}; name a JSON file in DeepSpeed's form"


def check_sharding(device: Any, lora: Any, model: Any, task: Any) -> Lines:
    """What a sharded base can carry."""
    if device.strategy not in ("fsdp", "deepspeed"):
        return
    if isinstance(lora, NoAdapter | AdaLoraSpec):
        yield f"lora={lora.method}: reads whole weights, which device.strategy={device.strategy} shards; type device=ddp"
    if device.strategy == "fsdp" and model.quantization is not None:
        yield f"model.quantization={model.quantization}: cannot be sharded here; type device=ddp, or model.quantization=null"
    if task.objective is not None:
        yield f"device.strategy={device.strategy}: preferences and rewards run with whole weights; type device=ddp"


def check_offload(device: Any, action: Any, task: Any) -> Lines:
    """A base whose layers wait elsewhere answers; it is not trained."""
    if device.max_memory is None:
        return
    if action.name not in ("reload", "evaluate", "generate", "merge", "explain", "extract", "combine"):
        yield f"device.max_memory={device.max_memory}: an offloaded base is not trained, so action={action.name} cannot use it; type device=auto"
    if device.strategy is not None:
        yield f"device.max_memory={device.max_memory}: cannot stand beside device.strategy={device.strategy}; type device.max_memory=null"
    if task.kind in ("seq_cls", "token_cls") or getattr(task.objective, "name", None) == "reward":
        yield f"device.max_memory={device.max_memory}: is for language models, and task.kind={task.kind} has a head; type device.max_memory=null"


def check_checkpoints(device: Any, trainer: Any, action: Any) -> Lines:
    """A sharded run is gathered once, at its end."""
    if device.strategy == "fsdp" and action.name == "train" and (trainer.save_strategy != "no" or action.resume):
        yield (
            f"trainer.save_strategy={trainer.save_strategy}: PEFT cannot write a checkpoint of sharded weights; the adapter is gathered and "
            "saved at the end: type trainer.save_strategy=no"
        )


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("device", "action"), check_strategy),
    (("device",), check_deepspeed),
    (("device", "lora", "model", "task"), check_sharding),
    (("device", "trainer", "action"), check_checkpoints),
    (("device", "action", "task"), check_offload),
]
