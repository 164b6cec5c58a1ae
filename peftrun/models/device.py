"""From what was asked to where and how precisely it runs. No fallback is silent: it is an error or a noted line."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from peftrun.config.schema.run import DeviceSpec
from peftrun.errors import DeviceError
from peftrun.system import determinism, environment, malloc

GROW_BY = 1 << 26  # bytes of memory that a CPU run fetches at once
NOT_NATIVE = "no native bfloat16 here"
DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Device:
    """A resolved device.

    Attributes:
        note: says in one line what was chosen and why.
        memory_check: what will not fit into memory is refused before it is loaded.
    """

    name: str
    dtype: torch.dtype
    note: str
    strategy: str | None = None
    deepspeed_config: str | None = None
    max_memory: dict[str | int, str] | None = None
    memory_check: bool = True

    @property
    def dtype_name(self) -> str:
        """`float32`, not `torch.float32`."""
        return str(self.dtype).removeprefix("torch.")

    def with_bfloat16(self, reason: str) -> "Device":
        """The same device, computing in bfloat16 though it is not native, which `reason` tells in place of why it was float32."""
        note = self.note.replace(f"float32: {NOT_NATIVE}", f"bfloat16: {reason}")
        return replace(self, dtype=torch.bfloat16, note=note)

    def offloaded(self, limits: dict[str | int, str]) -> "Device":
        """The same device, with so much of a base on each place and the rest on disk."""
        shown = ", ".join(f"{key} {value}" for key, value in limits.items())
        return replace(self, note=f"{self.note}; base offloaded beyond {shown}", max_memory=limits)


def resolve_device(spec: DeviceSpec) -> Device:
    """The device to use, and the dtype that a base is loaded in.

    Raises: DeviceError: the device is not there, or cannot compute in the dtype asked for.
    """
    determinism.set_deterministic(spec.deterministic)
    wanted = spec.num_threads or DEFAULT_THREADS
    if wanted != torch.get_num_threads():  # also back again, after a run of this process that asked otherwise
        torch.set_num_threads(wanted)
    found = _apply_memory_check(_select_device(spec), spec)
    if found.name == "cpu":
        malloc.retain_freed_memory(grow_by=GROW_BY)
    if spec.max_memory is not None:
        return found.offloaded(_parse_memory_limits(spec.max_memory))
    if spec.strategy is None:
        return found
    many = f"{spec.strategy}, {spec.processes * spec.machines} processes"
    return replace(found, note=f"{many}: {found.note}", strategy=spec.strategy, deepspeed_config=spec.deepspeed_config)


def _apply_memory_check(found: Device, spec: DeviceSpec) -> Device:
    if spec.memory_check:
        return found
    note = f"{found.note}; memory is not checked, as device.memory_check=false asks"
    return replace(found, note=note, memory_check=False)


def _parse_memory_limits(given: dict[str, str]) -> dict[str | int, str]:
    """By PEFT's and accelerate's names of devices. Raises: DeviceError: one is not there."""
    there = torch.accelerator.device_count()
    for key in given:
        if key.isdigit() and int(key) >= there:
            kept = ", ".join(f"{name}: {size}" for name, size in given.items() if name != key)
            raise DeviceError(
                f"device.max_memory={given}: torch finds {there} accelerators here, so there is no {key}; "
                f"type 'device.max_memory={{{kept or 'cpu: 4GiB'}}}'"
            )
    return {int(key) if key.isdigit() else key: value for key, value in given.items()}


def _select_device(spec: DeviceSpec) -> Device:
    name = _find_best_device() if spec.name == "auto" else spec.name
    if not _is_available(name):
        raise DeviceError(f"device={name}: torch finds no such device here; type device=auto or device=cpu")
    if spec.dtype != "auto":
        return Device(name, _check_dtype(name, spec.dtype), f"device {name}, {spec.dtype} as asked")
    reason = _why_native_bf16(name)
    dtype = torch.bfloat16 if reason else torch.float32
    why = reason or NOT_NATIVE
    short = "bfloat16" if reason else "float32"
    return Device(name, dtype, f"device {name}, {short}: {why} (device.dtype=float32|bfloat16|float16 to choose)")


def get_input_device(model: Any) -> torch.device:
    """Where a model's inputs belong; one whose first layers are offloaded, or in files, computes on its first real device."""
    found = torch.device(model.device)
    if found.type != "meta":
        return found
    places = [place for place in getattr(model, "hf_device_map", {}).values() if place not in ("cpu", "disk")]
    return torch.device(places[0] if places else "cpu")


def parse_dtype(name: str) -> torch.dtype:
    """`float32` → torch.float32."""
    return getattr(torch, name)


def _find_best_device() -> str:
    return next((name for name in ("cuda", "xpu", "mps") if _is_available(name)), "cpu")


def _is_available(name: str) -> bool:
    if name == "mps":
        return torch.backends.mps.is_available()
    return name == "cpu" or getattr(torch, name).is_available()


def _check_dtype(name: str, dtype: str) -> torch.dtype:
    if name == "cpu" and dtype == "float16":
        raise DeviceError(
            "device.dtype=float16: training in float16 needs a GPU; type device.dtype=bfloat16 or float32"
        )
    return parse_dtype(dtype)


def _why_native_bf16(name: str) -> str | None:
    """Why bfloat16 is native here, or None."""
    if name == "cuda":
        return "this GPU computes it natively" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if name == "xpu":
        return "this GPU computes it natively"
    if name == "mps":
        return None
    found = environment.find_native_bf16()
    return f"this CPU computes it natively ({found})" if found else None
