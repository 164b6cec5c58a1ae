"""Adapters to disk in PEFT's own layout, peftrun's facts beside them; whole or not at all."""

import json
import shutil
from collections.abc import Iterator
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
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.io import atomic_files
from peftrun.models.base import LoadedBase
from peftrun.system.versions import get_version

UNTRAINED_DIR = "untrained"


def save(model: Any, base: LoadedBase, target: Path, *, fresh: set[str], names: list[str] | None = None,
         dtype: torch.dtype | None = None, initial: Path | None = None,
         made_of: dict[str, Any] | None = None, top: str = "default") -> None:  # fmt: skip
    """Writes adapters (all, or `names`) into `target`: `top` at its top, others in folders of their own.

    Args: fresh: names of those never trained. dtype: of the saved tensors; None: as they are.
        initial: folder of the untrained adapter, for initialisations that changed the base: what is saved is
            then converted to fit the untouched base. made_of: noted beside: what it learned from, or was made of.
    Raises: ArtifactError: `target` exists, or the disk refused; nothing is left behind.
    """
    chosen = names or list(model.peft_config)
    active = model.active_adapter
    with atomic_files.create_folder(target) as folder:
        for name in chosen:
            own = folder if name == top else folder / name
            _write_adapter(model, name, own, initial)
            if dtype is not None:
                _cast_tensors(own / ADAPTER_WEIGHTS, dtype)
            model.set_adapter(name)
            atomic_files.write_json(
                own / PEFTRUN_METADATA, _build_metadata(model, base, name in fresh) | (made_of or {})
            )
    model.set_adapter(active)


@contextmanager
def keep_untrained(model: Any, lora: Any, out_dir: Path, writes: bool = True) -> Iterator[Path | None]:
    """The untrained adapter on disk for as long as the block runs, where saving will need it; else None.

    Args: writes: whether this process is the one that writes.
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


def _write_adapter(model: Any, name: str, folder: Path, initial: Path | None) -> None:
    conversion = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    root = folder.parent if folder.name == name else folder
    with trainable_tokens.skip_adapters_without_tokens(model, name):
        model.save_pretrained(str(root), selected_adapters=[name], save_embedding_layers=False, **conversion)
    (root / "README.md").unlink(missing_ok=True)  # PEFT's empty model card names paths of this machine
    inner = root / name
    if root == folder and inner.is_dir():  # PEFT puts every adapter but `default` into a folder of its own
        for file in inner.iterdir():
            file.rename(folder / file.name)
        inner.rmdir()
    _sort_names(model.peft_config[name], folder / ADAPTER_CONFIG)
    if initial:
        _add_unconverted(model, name, folder / ADAPTER_WEIGHTS)


def _sort_names(config: Any, file: Path) -> None:
    """PEFT writes sets of names in an order that differs from process to process: the same run, other bytes."""
    found = atomic_files.read_json(file)
    sets = [key for key, value in vars(config).items() if isinstance(value, set) and isinstance(found.get(key), list)]
    atomic_files.write_text(
        file, json.dumps(found | {key: sorted(found[key]) for key in sets}, indent=2, sort_keys=True)
    )


def _add_unconverted(model: Any, name: str, file: Path) -> None:
    """PEFT's conversion writes the low-rank factors alone: biases and modules trained in full are put beside them."""
    found = get_peft_model_state_dict(find_peft_model(model, name), adapter_name=name, save_embedding_layers=False)
    beside = {key: value.contiguous().cpu() for key, value in found.items() if ".lora_" not in key}
    if beside:
        save_file(load_file(file) | beside, file, metadata={"format": "pt"})


def _cast_tensors(path: Path, dtype: torch.dtype) -> None:
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _build_metadata(model: Any, base: LoadedBase, fresh: bool) -> dict[str, Any]:
    return {
        "peftrun": get_version("peftrun"),
        "base": base.describe(),
        "fresh": fresh,
        "probe": compute_probe_signature(base, model),
        **({"labels": list(model.config.id2label.values())} if base.head else {}),
    }
