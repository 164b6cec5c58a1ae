"""Rules between the device, its processes and what runs on them. Light."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.config.paths import no_file
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.system.packages import explain_not_installed

Lines = Iterator[str]

GPU_ONLY = ("activation_offloading", "use_liger_kernel")  # trainer options that need a GPU
SHARDED_QUANTIZATIONS = (None, "nf4", "fp4")  # whose bytes bitsandbytes can hold in the dtype of the other weights


def check_strategy(device: Any, action: Any) -> Lines:
    """A strategy, several processes, and a distributed action need each other."""
    # Several processes without a strategy would each do the whole run.
    if device.strategy is None:
        for key in ("num_processes", "num_machines"):
            if getattr(device, key) > 1:
                yield f"device.{key}={getattr(device, key)}: needs device.strategy; type device=ddp device.{key}={getattr(device, key)}"
        return
    if action.name not in ("train", "plan", "preview", "explain"):
        yield f"device.strategy={device.strategy}: action={action.name} runs in one process; type device=auto"
    if device.num_processes * device.num_machines < 2:
        yield f"device.num_processes=1: device.strategy={device.strategy} needs several processes; type device.num_processes=2"
    if device.num_machines > 1 and device.main_process_ip is None:
        yield "device.main_process_ip is not set; all machines connect to the first one: type device.main_process_ip=HOST"
    if device.machine_rank >= device.num_machines:
        yield f"device.machine_rank={device.machine_rank}: must be below device.num_machines={device.num_machines}; type device.machine_rank=0"


def check_deepspeed(device: Any) -> Lines:
    """DeepSpeed is installed, and its config file exists."""
    if device.strategy != "deepspeed":
        return
    if find_spec("deepspeed") is None:
        yield "device.strategy=deepspeed needs package=deepspeed: this package is not installed; type `pip install deepspeed`, or device=fsdp"
    if device.deepspeed_config is None:
        yield "device.deepspeed_config is not set; DeepSpeed is configured by a JSON file: type device.deepspeed_config=FILE.json"
    elif not Path(device.deepspeed_config).expanduser().is_file():
        yield f"device.deepspeed_config={device.deepspeed_config}: {no_file(device.deepspeed_config)}; name a JSON file in DeepSpeed's format"


def check_sharding(device: Any, lora: Any, model: Any, task: Any) -> Lines:
    """The method, quantization and objective work on a sharded base model."""
    strategy = device.strategy
    if strategy not in ("fsdp", "deepspeed"):
        return
    if not get_method_traits(lora.method).shards or (strategy == "deepspeed" and lora.method == "none"):
        yield f"lora={lora.method}: needs whole weights, which device.strategy={strategy} shards; type device=ddp"
    if strategy == "fsdp" and model.quantization not in SHARDED_QUANTIZATIONS:
        yield (
            f"model.quantization={model.quantization}: FSDP2 cannot shard these weights; type model.quantization=nf4, or device=ddp, with a whole "
            "copy in each process"
        )
    if strategy == "fsdp" and lora.method == "none" and task.type == "seq2seq":
        yield f"lora=none: trains embeddings that encoder and decoder share, which device.strategy={strategy} cannot shard; type device=ddp"
    if strategy == "deepspeed" and task.objective is not None:
        yield f"device.strategy={strategy}: preferences and rewards need whole weights; type device=fsdp or device=ddp"


def check_offload(device: Any, action: Any, task: Any) -> Lines:
    """An offloaded base model (device.max_memory) is inference-only."""
    if device.max_memory is None:
        return
    if action.name not in ("reload", "evaluate", "generate", "merge", "explain", "extract", "combine"):
        yield f"device.max_memory={device.max_memory}: an offloaded base model is inference-only, so action={action.name} cannot use it; type device=auto"
    if device.strategy is not None:
        yield f"device.max_memory={device.max_memory}: cannot be combined with device.strategy={device.strategy}; type device.max_memory=null"
    if task.type in ("seq_cls", "token_cls") or getattr(task.objective, "name", None) == "reward":
        yield f"device.max_memory={device.max_memory}: is for language models, and task.type={task.type} has a head; type device.max_memory=null"


def check_gpu_options(device: Any, trainer: Any, action: Any) -> Lines:
    """What only a GPU can do is not asked of the CPU, and its packages are there. Of device=auto only training knows what it is."""
    if device.type == "cpu" and action.name == "train":
        yield from list_gpu_options(device, trainer, "cpu")
    elif trainer.use_liger_kernel and find_spec("liger_kernel") is None:
        yield explain_not_installed("trainer.use_liger_kernel=true needs package", "liger_kernel")


def list_gpu_options(device: Any, trainer: Any, name: str) -> Lines:
    """One line for each option that the device called `name` cannot follow."""
    if device.tf32 and name != "cuda":
        yield f"device.tf32=true: is for a GPU, and this run is on {name}; type device.tf32=false"
    for key in GPU_ONLY if name == "cpu" else ():
        if getattr(trainer, key):
            yield f"trainer.{key}=true: is for a GPU, and this run is on the CPU; type trainer.{key}=false"


RULES: list[tuple[tuple[str, ...], Callable[..., Lines]]] = [
    (("device", "action"), check_strategy),
    (("device",), check_deepspeed),
    (("device", "lora", "model", "task"), check_sharding),
    (("device", "action", "task"), check_offload),
    (("device", "trainer", "action"), check_gpu_options),
]
