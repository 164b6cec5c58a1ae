"""From the device group to a device and a dtype. No fallback is silent: it is an error, or part of the device's note."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from peftrun.config.schema.run import DeviceSpec
from peftrun.errors import DeviceError
from peftrun.system import determinism, environment, malloc

GROW_BY = 1 << 26  # bytes that malloc requests from the kernel at once in a CPU run
NOT_NATIVE = "no native bfloat16 here"
VISIBLE_VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}  # of AMD GPUs: HIP_VISIBLE_DEVICES
DEFAULT_THREADS = torch.get_num_threads()  # before any run of this process sets another number


@dataclass(frozen=True)
class Device:
    """A resolved device.

    Attributes:
        note: one line: what was chosen and why.
        max_memory: device (GPU index, `cpu`) → limit, of an offloaded base model; None: not offloaded.
        memory_check: whether a base model that does not fit is refused before it is loaded.
        tf32: whether a training multiplies float32 matrices in TF32.
        is_typed: whether the config names the device, instead of `auto`.
    """

    name: str
    dtype: torch.dtype
    note: str
    strategy: str | None = None
    deepspeed_config: str | None = None
    max_memory: dict[str | int, str] | None = None
    memory_check: bool = True
    tf32: bool = False
    is_typed: bool = False

    @property
    def dtype_name(self) -> str:
        """`float32`, not `torch.float32`."""
        return str(self.dtype).removeprefix("torch.")

    def with_bfloat16(self, reason: str) -> "Device":
        """The same device in non-native bfloat16; in the note `reason` replaces why it was float32."""
        note = self.note.replace(f"float32: {NOT_NATIVE}", f"bfloat16: {reason}")
        return replace(self, dtype=torch.bfloat16, note=note)

    def offloaded(self, limits: dict[str | int, str]) -> "Device":
        """The same device with at most `limits` of the base model on each device, and the rest on disk."""
        shown = ", ".join(f"{key} {value}" for key, value in limits.items())
        return replace(self, note=f"{self.note}; base offloaded beyond {shown}", max_memory=limits)


def resolve_device(spec: DeviceSpec) -> Device:
    """The device to use, and the dtype that the base model is loaded in. Also sets determinism and the number of threads.

    Raises: DeviceError: the device does not exist here, or cannot compute in the requested dtype.
    """
    determinism.set_deterministic(spec.deterministic)
    threads = spec.num_threads or DEFAULT_THREADS
    if threads != torch.get_num_threads():  # also resets what an earlier run of this process has set
        torch.set_num_threads(threads)
    device = replace(_select_device(spec), tf32=spec.tf32, is_typed=spec.type != "auto")
    if not spec.memory_check:
        note = f"{device.note}; memory is not checked, as device.memory_check=false asks"
        device = replace(device, note=note, memory_check=False)
    if device.name == "cpu":
        malloc.retain_freed_memory(grow_by=GROW_BY)
    if spec.max_memory is not None:
        return device.offloaded(_parse_memory_limits(spec.max_memory))
    if spec.strategy is None:
        return device
    note = f"{spec.strategy}, {spec.num_processes * spec.num_machines} processes: {device.note}"
    return replace(device, note=note, strategy=spec.strategy, deepspeed_config=spec.deepspeed_config)


def _parse_memory_limits(limits: dict[str, str]) -> dict[str | int, str]:
    """Keyed as accelerate wants it: GPUs by int, other devices by name. Raises: DeviceError: no such GPU."""
    count = torch.accelerator.device_count()
    for key in limits:
        if key.isdigit() and int(key) >= count:
            others = ", ".join(f"{name}: {size}" for name, size in limits.items() if name != key)
            raise DeviceError(
                f"device.max_memory={limits}: torch finds {count} accelerators here, so there is no {key}; "
                f"type 'device.max_memory={{{others or 'cpu: 4GiB'}}}'"
            )
    return {int(key) if key.isdigit() else key: size for key, size in limits.items()}


def count_devices(device_type: str) -> tuple[str, int, str]:
    """What `device.type` means here, how many devices of it torch sees, and the environment variable by which a process sees some of them."""
    name = _choose_name(device_type)
    if name not in VISIBLE_VARIABLES:
        return name, int(_is_available(name)), ""
    variable = "HIP_VISIBLE_DEVICES" if name == "cuda" and torch.version.hip else VISIBLE_VARIABLES[name]
    return name, getattr(torch, name).device_count(), variable


def _choose_name(device_type: str) -> str:
    if device_type != "auto":
        return device_type
    return next((name for name in ("cuda", "xpu", "mps") if _is_available(name)), "cpu")


def _select_device(spec: DeviceSpec) -> Device:
    name = _choose_name(spec.type)
    if not _is_available(name):
        raise DeviceError(f"device={name}: torch finds no such device here; type device=auto or device=cpu")
    if name == "cpu" and spec.dtype == "float16":
        raise DeviceError(
            "device.dtype=float16: training in float16 needs a GPU; type device.dtype=bfloat16 or float32"
        )
    place = f"device {name}"
    count = torch.cuda.device_count() if name == "cuda" and spec.strategy is None else 1
    if count > 1:
        place += f" (the first of {count}; device=ddp device.num_processes={count} trains on all)"
    if spec.dtype != "auto":
        return Device(name, parse_dtype(spec.dtype), f"{place}, {spec.dtype} as asked")
    reason = _why_native_bf16(name)
    dtype = "bfloat16" if reason else "float32"
    note = f"{place}, {dtype}: {reason or NOT_NATIVE} (device.dtype=float32|bfloat16|float16 to choose)"
    return Device(name, parse_dtype(dtype), note)


def get_input_device(model: Any) -> torch.device:
    """The device for a model's inputs: its own, or if its first layers are offloaded the first accelerator of its device map."""
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    # accelerate moves offloaded layers to the accelerator for each pass, else to the CPU
    devices = [name for name in getattr(model, "hf_device_map", {}).values() if name not in ("cpu", "disk")]
    return torch.device(devices[0] if devices else "cpu")


def parse_dtype(name: str) -> torch.dtype:
    """`float32` → torch.float32."""
    return getattr(torch, name)


def _is_available(name: str) -> bool:
    if name == "mps":
        return torch.backends.mps.is_available()
    return name == "cpu" or getattr(torch, name).is_available()


def _why_native_bf16(name: str) -> str | None:
    """Why bfloat16 counts as native on this device; None if it does not."""
    if name == "cuda":
        return "this GPU computes it natively" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if name == "xpu":
        return "this GPU computes it natively"
    if name == "mps":
        return None
    flag = environment.find_native_bf16()
    return f"this CPU computes it natively ({flag})" if flag else None
