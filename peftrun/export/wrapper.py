"""Renames tensors of adapters for a language model inside a larger checkpoint to the checkpoint's names. Light.

Loaded as a language model, transformers calls the layers `model.layers…`, while the checkpoint calls them `language_model.model.layers…`
or `model.language_model.layers…`. vLLM serves the class of the checkpoint: an adapter with the first names loads but changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from peftrun.artifacts import base_location
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import ADAPTER_WEIGHTS
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import AdapterError
from peftrun.io import safetensors_header

PEFT = "base_model.model."
LAYERS, LANGUAGE = "layers.", "language_model"


def map_tensor_names(
    source: ExportSource, model: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> dict[str, str]:
    """Tensors of the adapter to rename → their new names; empty if none. Args: settings: see `base_config.read_base_config`.

    Raises: AdapterError: the base model is such a checkpoint, and its names are unknown.
    """
    tensors = [tensor.name for tensor in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)]
    if not (settings or {}).get("wrapped") or all(LANGUAGE in name for name in tensors):
        return {}
    folder = base_location.find_base_dir(ModelSpec(**model))
    # `0.self_attn.q_proj` → the names before `layers.0.self_attn.q_proj` in the checkpoint's language model.
    prefixes: dict[str, set[str]] = {}
    for file in folder.glob("*.safetensors") if folder else ():
        for tensor in safetensors_header.read_header(file):
            prefix, layers, rest = tensor.name.partition(LAYERS)
            if layers and LANGUAGE in prefix:  # not the layers of a vision tower
                prefixes.setdefault(rest.rpartition(".")[0], set()).add(prefix)
    renamed = {}
    for name in tensors:
        path, _, factor = name.removeprefix(PEFT).partition(".lora_")
        _, layers, module = path.partition(LAYERS)
        candidates = prefixes.get(module, set()) if layers else set()
        if len(candidates) != 1:
            raise AdapterError(
                f"{source.folder}: its base model is a larger model around a language model, for which vLLM would load {name} and change "
                "nothing, and the checkpoint's name for it is unknown; name the base model's folder: type model.name_or_path=FOLDER, or merge the adapter"
            )
        new_name = f"{PEFT}{next(iter(candidates))}{LAYERS}{module}.lora_{factor}"
        if new_name != name:
            renamed[name] = new_name
    return renamed
