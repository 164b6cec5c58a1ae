"""Saves adapters in PEFT's own layout, with peftrun's metadata in `peftrun.json`; atomically."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from peftrun.adapters import trainable_tokens
from peftrun.adapters.attach import modifies_base
from peftrun.adapters.load import compute_probe_signature
from peftrun.adapters.shared_encoder import find_peft_model
from peftrun.artifacts import token_settings
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.io import atomic_files
from peftrun.models.base import LoadedBase
from peftrun.system.versions import get_version

UNTRAINED_DIR = "untrained"


def save(model: Any, base: LoadedBase, target: Path, *, untrained: set[str], names: list[str] | None = None,
         dtype: torch.dtype | None = None, initial: Path | None = None,
         derived_from: dict[str, Any] | None = None, learned: Mapping[str, dict[str, Any]] | None = None,
         top: str = "default", write_beside: Callable[[Path], dict[str, Any]] | None = None) -> None:  # fmt: skip
    """Writes adapters (`names`; None: all) to the new folder `target`: `top` directly into it, others into subfolders.

    Args: untrained: names of those that were never trained. dtype: of the saved tensors; None: unchanged.
        initial: folder of the untrained adapter, for initializations that modify the base model: what is saved is
            then converted to plain LoRA for the unmodified base model. derived_from: further facts for peftrun.json, on its origin.
        learned: name → facts on what that adapter learned.
        write_beside: writes more into the folder, and returns facts on it for peftrun.json.
    Raises: ArtifactError: `target` exists, or writing failed; nothing is left behind.
    """
    active = model.active_adapter
    with atomic_files.create_folder(target) as root:
        beside = write_beside(root) if write_beside else {}
        for name in names or list(model.peft_config):
            folder = root if name == top else root / name
            write_adapter(model, name, folder, initial)
            weights = folder / ADAPTER_WEIGHTS
            if dtype is not None:
                tensors = load_file(weights)
                cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
                save_file(cast, weights, metadata={"format": "pt"})
            model.set_adapter(name)
            metadata = {
                "peftrun": get_version("peftrun"),
                "base": base.describe(),
                "untrained": name in untrained,
                "probe": compute_probe_signature(base, model),
                **({"labels": list(model.config.id2label.values())} if base.head else {}),
            }
            token_settings.copy_tokenizer_files(base.folder, folder)
            facts = (derived_from or {}) | (learned or {}).get(name, {}) | beside
            atomic_files.write_json(folder / PEFTRUN_METADATA, metadata | facts)
    model.set_adapter(active)


@contextmanager
def keep_untrained(model: Any, lora: Any, out_dir: Path, writes: bool = True) -> Iterator[Path | None]:
    """Within the block, the folder of the untrained adapter if saving needs it; else None.

    Args: writes: whether this is the process that saves.
    """
    if not modifies_base(lora) or not writes:
        yield None
        return
    folder = out_dir / UNTRAINED_DIR
    model.save_pretrained(str(folder), save_embedding_layers=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def omit_model_card(model: Any) -> None:
    """Adapters of `model` are saved without PEFT's model card: it is empty but for paths of this machine, and takes longer than the rest."""
    model.create_or_update_model_card = lambda folder: None


def write_adapter(model: Any, name: str, folder: Path, initial: Path | None) -> None:
    """Writes an adapter in PEFT's layout into `folder`, without metadata. Args: initial: see `save`."""
    conversion = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    root = folder.parent if folder.name == name else folder
    omit_model_card(find_peft_model(model, name))
    with trainable_tokens.skip_adapters_without_tokens(model, name):
        model.save_pretrained(str(root), selected_adapters=[name], save_embedding_layers=False, **conversion)
    subfolder = root / name
    if root == folder and subfolder.is_dir():  # PEFT saves every adapter but `default` into a subfolder
        for file in subfolder.iterdir():
            file.rename(folder / file.name)
        subfolder.rmdir()
    # PEFT's config has sets, whose order differs between processes: sorted, so that the same run writes the same bytes
    values = atomic_files.read_json(folder / ADAPTER_CONFIG)
    for key, value in vars(model.peft_config[name]).items():
        if isinstance(value, set) and isinstance(values.get(key), list):
            values[key] = sorted(values[key])
    atomic_files.write_text(folder / ADAPTER_CONFIG, json.dumps(values, indent=2, sort_keys=True))
    if initial:  # PEFT's conversion to plain LoRA drops biases and modules trained in full
        state = get_peft_model_state_dict(find_peft_model(model, name), adapter_name=name, save_embedding_layers=False)
        others = {key: value.contiguous().cpu() for key, value in state.items() if ".lora_" not in key}
        if others:
            weights = folder / ADAPTER_WEIGHTS
            save_file(load_file(weights) | others, weights, metadata={"format": "pt"})
