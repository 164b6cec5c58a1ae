"""The launcher's option `devices`: the devices of this machine over which groups are spread. Light; torch is imported to count GPUs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError, DeviceError
from peftrun.formatting import format_count, format_value
from peftrun.runs import execute

KEY = "hydra.launcher.devices"
Choice = str | int | list[int] | None  # auto, a number of devices, their indices, or this process


@dataclass(frozen=True)
class WorkerDevice:
    """A GPU, or a share of the CPU's cores. `environment`: the variables by which a process sees no other one."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def read_choice(value: Any, engine: str | None) -> Choice:
    """The option, checked. Raises: ConfigError: it is none of `auto`, a number and a list, or the cells run on a cluster."""
    if value is None:
        return None
    typed = f"{KEY}={format_value(value)}"
    if engine:
        raise ConfigError(
            f"{typed}: spreads groups over this machine, and a cluster has machines of its own; "
            f"type hydra/launcher=shared_base, or {KEY}=null"
        )
    if isinstance(value, list):
        if value and all(map(_is_index, value)) and len({*value}) == len(value):
            return value
    elif value == "auto" or (_is_index(value) and value != 0):
        return value
    raise ConfigError(
        f"{typed}: must be auto, a number of devices from 1, or a list of different GPUs such as [0,2]; type {KEY}=auto"
    )


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def find_devices(choice: Choice, specs: Sequence[RunSpec], halving: object = None) -> list[WorkerDevice]:
    """The devices that each take a worker; empty: all cells run in this process, as with `auto` where there is at most one GPU.

    Raises: ConfigError: the cells, or `halving`, do not allow it. DeviceError: this machine has no such devices.
    """
    if choice is None:
        return []
    typed = f"{KEY}={format_value(choice)}"
    device_type = _read_device_type(typed, specs)
    kind, count, variable = device_type, 0, ""
    if device_type != "cpu":
        kind, count, variable = execute.import_quietly("peftrun.models.device").count_devices(device_type)
    if choice == "auto" and (kind == "cpu" or count < 2):
        return []
    if halving:
        raise ConfigError(
            f"hydra.launcher.halving={format_value(halving)}: compares cells of one process; "
            f"type {KEY}=null, or hydra.launcher.halving=null"
        )
    if kind == "cpu":
        if isinstance(choice, list):
            raise DeviceError(f"{typed}: a list names GPUs, and the cells run on the CPU; type {KEY}={len(choice)}")
        return [WorkerDevice(f"cpu:{index}") for index in range(int(choice))]
    indices = choice if isinstance(choice, list) else [*range(count if choice == "auto" else int(choice))]
    if max(indices) >= count:
        advice = f"{KEY}=auto" if count else "device=cpu"
        raise DeviceError(f"{typed}: torch finds {format_count(count, f'{kind} device')} here; type {advice}")
    return [WorkerDevice(f"{kind}:{index}", select_device(variable, index)) for index in indices]


def _read_device_type(typed: str, specs: Sequence[RunSpec]) -> str:
    """`device.type`, which must be the same for all cells. Raises: ConfigError: it is not, or a run takes several devices for itself."""
    for spec in specs:
        if spec.device.strategy is not None:
            raise ConfigError(
                f"{typed}: device.strategy={spec.device.strategy} spreads each run over devices, so no device is one worker's; "
                f"type device=auto, or {KEY}=null"
            )
    types = sorted({spec.device.type for spec in specs})
    if len(types) > 1:
        raise ConfigError(f"{typed}: the cells have device.type={','.join(types)}; type one of them, or {KEY}=null")
    return types[0]


def select_device(variable: str, index: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables by which a process sees only device `index` of those that this process sees.

    Args: variable: empty: the kind of device has none, since a machine has one.
    """
    if not variable:
        return {}
    # AMD's runtime reads CUDA_VISIBLE_DEVICES as HIP_VISIBLE_DEVICES, and counts from what ROCR_VISIBLE_DEVICES leaves.
    names = [variable, *(["CUDA_VISIBLE_DEVICES"] if variable.startswith("HIP") else [])]
    listed = next((environment[name] for name in names if environment.get(name)), "")
    entry = listed.split(",")[index].strip() if listed else str(index)
    return dict.fromkeys(names, entry)
