"""A model without weights under an adapter with them: what a merge needs, in the adapter's own size of memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from peftrun.adapters import peft_config, saved_base
from peftrun.adapters.layer_walk import plain_name
from peftrun.adapters.merge import streaming
from peftrun.artifacts import base_files, classifier_head
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.compat.peft import pin_adapter_device
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import AdapterError
from peftrun.models import base as base_models
from peftrun.system import malloc


def build_on_meta(base_folder: Path, spec: ModelSpec, adapter: AdapterRef) -> Any:
    """The PEFT model in evaluation mode: the base's parameters on the meta device, the adapter's real, in float32.

    Raises: AdapterError: the adapter does not fit this base's architecture.
    """
    name, folder = adapter.name, adapter.folder
    malloc.retain_freed_memory(arenas=1)
    try:
        config = peft_config.read_peft_config(adapter)
        config.inference_mode = True
        host = base_models.build_empty(base_folder, spec, classifier_head.read_adapter_head(adapter))
        net = get_peft_model(host, config, adapter_name=name, low_cpu_mem_usage=True)
        pin_adapter_device(net)
        saved = load_file(adapter.weights)
        known = get_peft_model_state_dict(net, adapter_name=name, save_embedding_layers=False).keys()
        of_base = saved_base.map_base_embeddings(net, name, saved)
        saved_base.check_same_embeddings(
            _make_base_reader(net, base_folder), {key: (one, saved[key]) for key, one in of_base.items()}, folder
        )
        saved = saved_base.drop_tensors(saved, of_base.keys() | saved_base.find_duplicate_names(saved, known))
        set_peft_model_state_dict(net, saved, adapter_name=name, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        if "allocate memory" in str(error):  # not the adapter's fault
            raise
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"{folder}: does not fit {base_files.format_base_name(spec)} ({reason})") from error
    # Against what PEFT would write again: it calls the second copy of a bias unexpected, though it writes both.
    missing, unexpected = known - saved.keys(), saved.keys() - known
    if missing or unexpected:
        raise AdapterError(
            f"{folder}: was made for another architecture: {len(unexpected)} of its tensors have no place in "
            f"{base_files.format_base_name(spec)}, {len(missing)} adapted tensors are not in it; choose the base it was made for"
        )
    net.set_adapter(name)
    for parameter in net.parameters():
        if not parameter.is_meta:
            parameter.data = parameter.data.to(torch.float32)
    return net.requires_grad_(False).eval()


def _make_base_reader(net: Any, folder: Path) -> Callable[[str], torch.Tensor]:
    """Reads a parameter of the base from its files."""
    found = streaming.map_stored_tensors(net.get_base_model(), folder)
    return lambda name: found[plain_name(name)].read_stored()
