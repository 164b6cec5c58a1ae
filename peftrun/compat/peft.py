"""PEFT 0.21: how it expands target modules, reads a base model's files, places loaded tensors, casts inputs and routes rows."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, cast_adapter_dtype
from peft.utils.loftq_utils import _SafetensorLoader


def get_base_model(net: Any) -> Any:
    """The transformers model below an adapter, or the model itself."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def expand_target_modules(config: Any, model: Any) -> Any:
    """The config with the layers that `all-linear` stands for in this model; PEFT does it only while it attaches."""
    return _maybe_include_all_linear_layers(config, model)


def open_base_weights(net: Any, folder: str) -> Any:
    """Reads tensors of the base model's files one by one: `get_tensor(name)`."""
    return _SafetensorLoader(net, folder)


def list_adapters(layer: BaseTunerLayer) -> list[str]:
    """The adapters that a layer has, whichever of PEFT's attributes hold their tensors."""
    return list(layer._all_available_adapter_names())


def pin_adapter_device(net: Any) -> None:
    """Keeps PEFT from moving loaded tensors to where their layer's weights are: nowhere, if the base is on the meta device."""
    for module in net.modules():
        if isinstance(module, BaseTunerLayer):
            module._move_adapter_to_device_of_base_layer = lambda *_, **__: None


def route_with_peft(net: Any, adapter_names: list[str]) -> AbstractContextManager[None]:
    """Inside, each row of a batch goes through its own adapter. PEFT's public argument goes through `generate` and `forward` of its own class alone."""
    context: AbstractContextManager[None] = net.base_model._enable_peft_forward_hooks(adapter_names=adapter_names)
    return context


@contextmanager
def inject_in_float32(net: Any) -> Iterator[None]:
    """Inside, an adapter that PEFT adds by `add_weighted_adapter` gets the dtype of a loaded one: float32, also on a bfloat16 base."""
    tuner, inject = net.base_model, net.base_model.inject_adapter

    def inject_and_cast(model: Any, adapter_name: str) -> None:
        inject(model, adapter_name)
        cast_adapter_dtype(model, adapter_name)

    tuner.inject_adapter = inject_and_cast
    try:
        yield
    finally:
        del tuner.inject_adapter


@contextmanager
def leave_casts_to_autocast(net: Any, enabled: bool) -> Iterator[None]:
    """Inside, plain LoRA layers take an input that has autocast's dtype as it is; the results are the same bytes.

    PEFT casts it to float32, the dtype of LoRA's matrices, and autocast casts it back before it is multiplied: two passes over the
    activations for each layer, forward and backward, and a copy kept for the backward pass in place of the one that layers share.
    Variants such as DoRA compute with the input itself, and keep their cast.
    """
    layers = [module for module in net.modules() if enabled and isinstance(module, Linear) and not module.lora_variant]
    for layer in layers:
        layer._cast_input_dtype = partial(_cast_outside_of_autocast, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._cast_input_dtype


def _cast_outside_of_autocast(layer: BaseTunerLayer, x: Any, dtype: torch.dtype) -> Any:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.get_autocast_dtype(device):
        return x
    return BaseTunerLayer._cast_input_dtype(layer, x, dtype)
