"""The base model's embeddings in an adapter's file: PEFT saves them if they are adapted, or if it believes that they were resized.

They are not part of the adapter. If they equal the base model's, the adapter fits; if not, it was made on other embeddings, with which PEFT
would overwrite the base model's.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from peftrun.adapters import trainable_tokens
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.errors import AdapterError
from peftrun.io import safetensors_stream

PREFIX = "base_model.model."
# PEFT's wrappers, in the name of a weight after its module.
WRAPPED = re.compile(r"\.(base_layer|token_adapter|original_module)(?=\.|$)")
TRAINED = re.compile(r"\.(modules_to_save|token_adapter)\.")


class AdapterFile(Mapping[str, torch.Tensor]):
    """The tensors of an adapter's file, each read when it is asked for and never kept: the model may map the same file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stored = {tensor.entry.name: tensor for tensor in safetensors_stream.list_stored_tensors(file)}

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        if stored.entry.dtype in safetensors_stream.DTYPES:
            return stored.read_stored()
        with safe_open(self._file, "pt") as opened:  # of 8 bits, say
            values: torch.Tensor = opened.get_tensor(name)
        return values

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def map_base_embeddings(model: Any, adapter: str, keys: Iterable[str]) -> dict[str, str]:
    """Those of an adapter file's `keys` that are the base model's embeddings → name of the parameter in the base model.

    Args: model: the PEFT model with the adapter attached.
    """
    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    modules = base.named_modules(remove_duplicate=False)
    paths = tuple(f"{path}." for path, module in modules if any(module is layer for layer in layers))
    parameters = {
        strip_wrappers(name): name
        for name, _ in base.named_parameters(remove_duplicate=False)
        if name.startswith(paths) and "lora_" not in name and ".modules_to_save." not in name
    }
    plain = {key: strip_wrappers(key.removeprefix(PREFIX)) for key in keys if key.startswith(PREFIX)}
    embeddings = {key: parameters[name] for key, name in plain.items() if name in parameters}
    if not embeddings:
        return {}
    with trainable_tokens.skip_adapters_without_tokens(model, adapter):
        trained = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key: name for key, name in embeddings.items() if key not in trained}


@contextmanager
def preserve_base(model: PeftModel, adapter: AdapterRef) -> Iterator[dict[str, str]]:
    """Yields `map_base_embeddings` of the adapter's file, which is loaded into `model` within the block; restores the base model's values.

    Raises: AdapterError: one of them differs from the base model's.
    """
    base, rounded = model.get_base_model(), {}
    with safe_open(adapter.weights, "pt") as file:
        embeddings = map_base_embeddings(model, adapter.name, file.keys())
        for key, name in embeddings.items():
            with align_module_device(base.get_submodule(name.rpartition(".")[0])):  # it may be offloaded
                value = base.get_parameter(name).detach()
            saved = file.get_tensor(key)  # (vocabulary, hidden), as `value`
            _check_same_embedding(value, saved, key, adapter.folder)
            if value.dtype != saved.dtype:
                rounded[name] = value.clone()
    yield embeddings
    for name, value in rounded.items():
        base.get_parameter(name).data.copy_(value)


def check_same_embeddings(
    read: Callable[[str], torch.Tensor], saved: Mapping[str, tuple[str, torch.Tensor]], folder: Path
) -> None:
    """The same check for a base model in files. `saved`: key in the adapter's file → name of the base model's parameter, and the file's values.

    Raises: AdapterError: one of them differs from the base model's.
    """
    for key, (name, values) in saved.items():
        _check_same_embedding(read(name), values, key, folder)


def find_duplicate_names(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> set[str]:
    """Names of second copies of the adapter's tensors `names`: PEFT writes them if it saves embeddings that are trained in full or in part."""
    own = [key for key in names if key in tensors]
    others = {key: tensors[key] for key in tensors.keys() - set(own) if TRAINED.search(key)}
    if not others:
        return set()
    # each of the adapter's own is read once: `tensors` may be a file
    return {
        key for value in map(tensors.__getitem__, own) for key, other in others.items() if torch.equal(other, value)
    }


def drop_tensors(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file except `names`."""
    dropped = set(names)
    return {key: value for key, value in tensors.items() if key not in dropped}


def strip_wrappers(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return WRAPPED.sub("", name)


def _check_same_embedding(value: torch.Tensor, saved: torch.Tensor, key: str, folder: Path) -> None:
    """Compares the base model's embedding with the adapter file's, (vocabulary, hidden) each, in the narrower of their dtypes."""
    if value.shape != saved.shape:
        raise AdapterError(
            f"{folder}: was made on resized embeddings: {key} has {saved.shape[0]} rows in its file and {value.shape[0]} in this base model; "
            "choose a base model that was resized so (resize_token_embeddings, save_pretrained)"
        )
    dtype = min(value.dtype, saved.dtype, key=lambda dtype: dtype.itemsize)
    value, saved = value.to("cpu", dtype), saved.to(dtype)
    if not torch.equal(value, saved):
        rows = int((value != saved).flatten(1).any(1).sum())
        raise AdapterError(
            f"{folder}: was made on other embeddings: {key} differs from this base model's in {rows} of {len(value)} rows, so the embedding was "
            "trained, or resized and filled; choose the base model that has these embeddings, or train them as lora.modules_to_save"
        )
