"""Adapters on an offloaded base model, whose layers are on the CPU or disk until they are computed.

PEFT creates an adapter's tensors on the device of its layer's weight, which for an offloaded weight is the meta device.
"""

from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from peftrun.adapters import saved_base
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.compat.accelerate import get_execution_device
from peftrun.compat.peft import pin_adapter_device
from peftrun.errors import AdapterError

# Features whose initialization or loading reads the base model's own weights.
NEEDS_BASE_WEIGHTS = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")


def add_to_offloaded(host: Any, model: Any, config: Any, adapter: AdapterRef) -> Any:
    """The PEFT model with this adapter, each tensor on the device that its layer is computed on.

    Raises: AdapterError: this kind of adapter needs base weights that are not in memory.
    """
    _check_plain_lora(config, adapter.label)
    if model is None:
        model = get_peft_model(host, config, adapter_name=adapter.name, low_cpu_mem_usage=True)
    else:
        model.add_adapter(adapter.name, config, low_cpu_mem_usage=True)
    pin_adapter_device(model)
    with saved_base.preserve_base(model, adapter) as base_tensors:
        tensors = saved_base.drop_tensors(load_file(adapter.weights), base_tensors)
        set_peft_model_state_dict(model, tensors, adapter_name=adapter.name, low_cpu_mem_usage=True)
    return _place_adapters(model)


def add_untrained(host: Any, config: Any) -> Any:
    """The PEFT model with an adapter `default` of zeros, to be filled later, each tensor on the device that its layer is computed on.

    Raises: AdapterError: see `add_to_offloaded`.
    """
    _check_plain_lora(config, "lora")
    model = get_peft_model(host, config, low_cpu_mem_usage=True)
    pin_adapter_device(model)
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        for attribute in layer.adapter_layer_names:  # lora_A, lora_B, …
            getattr(layer, attribute).to_empty(device="cpu", recurse=True)
            for parameter in getattr(layer, attribute).parameters():
                parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
    return _place_adapters(model)


def _check_plain_lora(config: Any, where: str) -> None:
    peft_type = config.peft_type.value
    feature = next((key for key in NEEDS_BASE_WEIGHTS if getattr(config, key, None)), None)
    if peft_type != "LORA" or feature or config.bias != "none":
        raise AdapterError(
            f"{where}: is of type {peft_type}{f' with {feature}' if feature else ''}, and an offloaded base carries plain LoRA; type device.max_memory=null where there is memory for all of it, or model.quantization=nf4"
        )


def _place_adapters(model: Any) -> Any:
    """Moves each layer's adapter tensors to the device on which accelerate's hook computes the layer."""
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        device = get_execution_device(layer.get_base_layer())
        for attribute in layer.adapter_layer_names:
            for parameter in getattr(layer, attribute).parameters():
                if not parameter.is_meta:
                    parameter.data = parameter.data.to(device)
    return model
