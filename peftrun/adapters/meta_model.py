"""A PEFT model whose base model is on the meta device and whose adapter is real: takes the adapter's memory only."""

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
    """The PEFT model in evaluation mode: the base model's parameters on the meta device, the adapter's real, in float32.

    Raises: AdapterError: the adapter does not fit the architecture of this base model.
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
        expected = get_peft_model_state_dict(net, adapter_name=name, save_embedding_layers=False).keys()
        embeddings = saved_base.map_base_embeddings(net, name, saved)
        stored = streaming.map_stored_tensors(net.get_base_model(), base_folder) if embeddings else {}
        saved_base.check_same_embeddings(
            lambda parameter: stored[plain_name(parameter)].read_stored(),
            {key: (parameter, saved[key]) for key, parameter in embeddings.items()},
            folder,
        )
        saved = saved_base.drop_tensors(saved, embeddings.keys() | saved_base.find_duplicate_names(saved, expected))
        set_peft_model_state_dict(net, saved, adapter_name=name, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        if "allocate memory" in str(error):  # the machine's fault, not the adapter's
            raise
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"{folder}: does not fit {base_files.format_base_name(spec)} ({reason})") from error
    # Compared with what PEFT would save: its own check calls the second copy of a bias unexpected, though PEFT saves both.
    missing, unexpected = expected - saved.keys(), saved.keys() - expected
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
