"""Adapters of the language model inside a larger checkpoint, under the names that the checkpoint has. Light.

transformers trains `model.layers…` of a checkpoint whose own names are `language_model.model.layers…`, or `model.language_model.layers…`.
vLLM serves the checkpoint's class: an adapter under the first names is loaded, and changes nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_files
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
    """Tensor of the adapter → its name in the base's checkpoint; empty where they are the same. `settings`: see `base.settings`.

    Raises: AdapterError: the base is such a checkpoint, and its names are not known.
    """
    tensors = [one.name for one in safetensors_header.read_header(source.folder / ADAPTER_WEIGHTS)]
    if not (settings or {}).get("wrapped") or all(LANGUAGE in name for name in tensors):
        return {}
    folder = base_files.find_base_dir(ModelSpec(**model))
    heads = _collect_prefixes(folder) if folder else {}
    found = {name: _rename_tensor(name, heads) for name in tensors}
    unknown = [name for name, renamed in found.items() if renamed is None]
    if unknown:
        raise AdapterError(
            f"{source.folder}: its base is a larger model around a language model, for which vLLM would load {unknown[0]} and change "
            "nothing, and its own name for it is not known; name the base's folder: type model.name_or_path=FOLDER, or merge the adapter"
        )
    return {name: renamed for name, renamed in found.items() if renamed and renamed != name}


def _collect_prefixes(folder: Path) -> dict[str, set[str]]:
    """`layers.0.self_attn.q_proj` → what stands before it in the names of the checkpoint's language model."""
    heads: dict[str, set[str]] = {}
    for file in folder.glob("*.safetensors"):
        for one in safetensors_header.read_header(file):
            head, sign, tail = one.name.partition(LAYERS)
            if sign and LANGUAGE in head:
                heads.setdefault(f"{LAYERS}{tail.rpartition('.')[0]}", set()).add(head)
    return heads


def _rename_tensor(name: str, heads: Mapping[str, set[str]]) -> str | None:
    path, _, factor = name.removeprefix(PEFT).partition(".lora_")
    _, sign, tail = path.partition(LAYERS)
    known = heads.get(f"{LAYERS}{tail}", set()) if sign else set()
    return f"{PEFT}{next(iter(known))}{LAYERS}{tail}.lora_{factor}" if len(known) == 1 else None
