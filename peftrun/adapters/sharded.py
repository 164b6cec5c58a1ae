"""Tensors that are sharded over processes (FSDP2): whole ones from them, and back; all those of an adapter."""

from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from peftrun.adapters.attach import ADAPTER_NAME


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, on the CPU. A collective operation: each process has only a shard, so all must call it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().clone()


def shard_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """The tensor, spread over processes as `example` of the same shape is; every process has read the whole of it."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    # src_data_rank=None: nothing is sent
    whole = tensor.to(example.device)
    return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)


@torch.no_grad()
def copy_tensor(target: torch.Tensor, tensor: torch.Tensor) -> None:
    """Sets `target`, sharded or not, to the whole `tensor`."""
    values = shard_like(tensor, target)
    if isinstance(target, DTensor):
        target.to_local().copy_(values.to_local())
    else:
        target.copy_(values)


def gather_adapter(net: Any) -> dict[str, torch.Tensor]:
    """Name → whole tensor of the adapter that is trained, as `net.state_dict()` names it; without the base model's. A collective operation."""
    return {name: gather_tensor(tensor) for name, tensor in _list_adapter_tensors(net).items()}


def load_adapter(net: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Sets the adapter that is trained to `tensors`, named as in an adapter's file."""
    targets = get_peft_model_state_dict(
        net, state_dict=_list_adapter_tensors(net), adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    for name, target in targets.items():
        copy_tensor(target, tensors[name])


def _list_adapter_tensors(net: Any) -> dict[str, torch.Tensor]:
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    # Tensors that a method keeps frozen carry the adapter's name, biases of the base model that it trains do not.
    return {
        name: tensor for name, tensor in net.state_dict().items() if name in trained or ADAPTER_NAME in name.split(".")
    }
