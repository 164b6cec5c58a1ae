"""Adds adapters to a loaded model, and removes them, while it is in use; verifies each as every load."""

from collections.abc import Generator
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from peftrun.adapters import add, load, peft_config
from peftrun.adapters.load import LoadProof
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.errors import AdapterError
from peftrun.models.base import LoadedBase


def hot_add(base: LoadedBase, net: Any, adapter: AdapterRef, plain: torch.Tensor) -> Generator[Any, None, LoadProof]:
    """Yields the model with the adapter, which the caller must use from then on; returns the proof of the load.

    If the load or its proof fails, the model is left without the adapter.

    Args: net: the PEFT model, or the base model itself if no adapter is loaded yet. plain: the base model's logits on the probes.
    Raises: AdapterError: the adapter does not fit. ProofError: it changes nothing, or its logits differ from those when it was saved.
    """
    name, model = adapter.name, net
    if not isinstance(net, PeftModel):
        try:
            config = peft_config.read_peft_config(adapter)
            config.inference_mode = True
            model = get_peft_model(base.model, config, adapter_name=name)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise AdapterError(
                f"{adapter.label}: does not fit {base.name} ({reason}); choose the base it was made for"
            ) from error
    try:
        add.add_adapter(base, base.model, model, adapter)
        model.requires_grad_(False).eval()
    except BaseException:
        yield hot_remove(model, name)
        raise
    yield model
    try:
        return load.verify_load(base, model, adapter, plain)
    except BaseException:
        hot_remove(model, name)
        raise


def hot_remove(net: Any, name: str) -> Any:
    """The model without the adapter; another one becomes active if there is any."""
    if not isinstance(net, PeftModel) or name not in net.peft_config:
        return net
    net.delete_adapter(name)
    others = list(net.peft_config)
    if others:
        net.set_adapter(others[0])
    return net
