"""Adapters on a base whose layers wait elsewhere until they are needed.

PEFT puts an adapter's tensors where its layer's weight is, which for a weight that waits on disk is nowhere.
"""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from peftrun.adapters import saved_base
from peftrun.adapters.meta_model import pin_adapter_device
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.errors import AdapterError

NEEDS_BASE_WEIGHTS = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)  # what needs the base's own weights


def add_to_offloaded(host: Any, model: Any, config: Any, name: str, folder: Path) -> Any:
    """The PEFT model with this adapter, each tensor where its layer computes.

    Raises: AdapterError: an adapter of this kind needs weights that are not there.
    """
    _check_plain_lora(config, str(folder))
    if model is None:
        model = get_peft_model(host, config, adapter_name=name, low_cpu_mem_usage=True)
    else:
        model.add_adapter(name, config, low_cpu_mem_usage=True)
    pin_adapter_device(model)
    with saved_base.preserve_base(model, name, folder) as found:
        own = saved_base.drop_tensors(load_file(folder / ADAPTER_WEIGHTS), found)
        set_peft_model_state_dict(model, own, adapter_name=name, low_cpu_mem_usage=True)
    return _place_adapters(model)


def add_untrained(host: Any, config: Any) -> Any:
    """The PEFT model with an adapter `default` of zeros, to be filled, each tensor where its layer computes.

    Raises: AdapterError: see `add`.
    """
    _check_plain_lora(config, "lora")
    model = get_peft_model(host, config, low_cpu_mem_usage=True)
    pin_adapter_device(model)
    for module in (one for one in model.modules() if isinstance(one, BaseTunerLayer)):
        for part in module.adapter_layer_names:
            getattr(module, part).to_empty(device="cpu", recurse=True)
            for one in getattr(module, part).parameters():
                one.data = torch.zeros_like(one, dtype=torch.float32)
    return _place_adapters(model)


def _check_plain_lora(config: Any, where: str) -> None:
    kind = config.peft_type.value
    needs = next((key for key in NEEDS_BASE_WEIGHTS if getattr(config, key, None)), None)
    if kind != "LORA" or needs or config.bias != "none":
        raise AdapterError(
            f"{where}: is of type {kind}{f' with {needs}' if needs else ''}, and an offloaded base carries plain LoRA; type device.max_memory=null where there is memory for all of it, or model.quantization=nf4"
        )


def _place_adapters(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            _place_layer(module)
    return model


def _place_layer(module: Any) -> None:
    """Moves the adapter's tensors to where the layer's hook computes."""
    hook = getattr(module.get_base_layer(), "_hf_hook", None)
    place = torch.device(getattr(hook, "execution_device", None) or "cpu")
    for part in module.adapter_layer_names:
        for one in getattr(module, part).parameters():
            if not one.is_meta:
                one.data = one.data.to(place)
