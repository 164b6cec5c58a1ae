"""Memory of the host for transfers to and from a device: page-locked where that makes them several times as fast."""

import torch

PINNED_TYPES = ("cuda", "xpu")  # torch keeps freed pages of these locked, so that the next buffer costs nothing


def allocate_host(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialized memory on the host, (count,), from which or to which `device` copies."""
    return torch.empty(count, dtype=dtype, pin_memory=device.type in PINNED_TYPES)


def copy_to_host(values: torch.Tensor) -> torch.Tensor:
    """The same values, (count,), on the host; they themselves if they are there."""
    if values.device.type == "cpu":
        return values
    return allocate_host(len(values), values.dtype, values.device).copy_(values)
