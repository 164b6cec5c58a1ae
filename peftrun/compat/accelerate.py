"""accelerate 1.15: the state that it shares in a process, and its hooks on offloaded layers."""

import copy
from typing import Any

import torch
from accelerate.state import GradientState
from accelerate.utils import DistributedType


def capture_gradient_state() -> dict[str, Any]:
    """The process-wide count of accumulated batches: several trainings in one process must not share it."""
    return {key: copy.copy(value) for key, value in GradientState._shared_state.items()}


def restore_gradient_state(state: dict[str, Any]) -> None:
    """Sets it to what `capture_gradient_state` returned."""
    GradientState._shared_state.clear()
    GradientState._shared_state.update(state)


def enable_fsdp(state: Any, plugin: Any) -> None:
    """Switches a process's accelerate state to FSDP, which accelerate drops on CPUs."""
    type(state)._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}


def get_execution_device(module: torch.nn.Module) -> torch.device:
    """The device on which an offloaded layer is computed, wherever its weights are."""
    return torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", None) or "cpu")
