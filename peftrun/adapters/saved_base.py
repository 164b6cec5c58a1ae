"""Tensors of the base that lie in an adapter's file: PEFT saves the embeddings there where they are adapted, and where it takes them for resized.

They are no part of the adapter. Where they are the base's own, the adapter fits; where they are not, it was made on other embeddings, and
PEFT would put these in the place of the base's.
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

PREFIX = "base_model.model."
WRAPPED = re.compile(
    r"\.(base_layer|token_adapter|original_module)(?=\.|$)"
)  # what PEFT puts between a module and its weight

TRAINED = re.compile(r"\.(modules_to_save|token_adapter)\.")


def map_base_embeddings(model: Any, adapter: str, keys: Iterable[str]) -> dict[str, str]:
    """Those of an adapter file's `keys` that are embeddings of the base → the parameter of the base that each is.

    Args: model: the PEFT model that has the adapter already.
    """
    parameters = _map_embedding_names(model.get_base_model())
    found = {key: strip_wrappers(key.removeprefix(PREFIX)) for key in keys if key.startswith(PREFIX)}
    found = {key: parameters[name] for key, name in found.items() if name in parameters}
    if not found:
        return {}
    with trainable_tokens.skip_adapters_without_tokens(model, adapter):
        own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key: name for key, name in found.items() if key not in own}


@contextmanager
def preserve_base(model: PeftModel, adapter: AdapterRef) -> Iterator[dict[str, str]]:
    """`names` of the adapter's file, which is loaded into `model` while the block runs; the base's values are then what they were.

    Raises: AdapterError: one of them is not as the base has it.
    """
    base, rounded = model.get_base_model(), {}
    with safe_open(adapter.weights, "pt") as file:
        found = map_base_embeddings(model, adapter.name, file.keys())
        for key, name in found.items():
            own, saved = _read_parameter(base, name), file.get_tensor(key)
            _check_same_embedding(own, saved, key, adapter.folder)
            if own.dtype != saved.dtype:
                rounded[name] = own.clone()
    yield found
    for name, value in rounded.items():
        base.get_parameter(name).data.copy_(value)


def check_same_embeddings(
    read: Callable[[str], torch.Tensor], saved: Mapping[str, tuple[str, torch.Tensor]], folder: Path
) -> None:
    """The same for a base in files. `saved`: key in the adapter's file → parameter of the base, and the values in the adapter's file.

    Raises: AdapterError: one of them is not as the base has it.
    """
    for key, (name, values) in saved.items():
        _check_same_embedding(read(name), values, key, folder)


def find_duplicate_names(tensors: Mapping[str, torch.Tensor], own: Iterable[str]) -> set[str]:
    """Names of second copies of the adapter's `own` tensors, which PEFT writes where it saves embeddings that are trained in full or in part."""
    held = {key: tensors[key] for key in own if key in tensors}
    twice = [key for key in tensors.keys() - held.keys() if TRAINED.search(key)]
    return {key for key in twice if any(_is_equal(tensors[key], value) for value in held.values())}


def drop_tensors(tensors: Mapping[str, torch.Tensor], others: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file, but for the `others`."""
    dropped = set(others)
    return {key: value for key, value in tensors.items() if key not in dropped}


def _map_embedding_names(base: Any) -> dict[str, str]:
    """The name of each parameter of the input and output embeddings, as in a model without adapters → its name in this one."""
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    paths = [
        path for path, module in base.named_modules(remove_duplicate=False) if any(module is one for one in layers)
    ]
    parameters = [name for name, _ in base.named_parameters(remove_duplicate=False) if "lora_" not in name]
    inside = [name for name in parameters if name.startswith(tuple(f"{path}." for path in paths))]
    return {strip_wrappers(name): name for name in inside if ".modules_to_save." not in name}


def strip_wrappers(name: str) -> str:
    """The name that a parameter has in a model without adapters."""
    return WRAPPED.sub("", name)


def _read_parameter(base: Any, name: str) -> torch.Tensor:
    """The parameter, brought here where the base is offloaded."""
    with align_module_device(base.get_submodule(name.rpartition(".")[0])):
        return base.get_parameter(name).detach()


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _check_same_embedding(own: torch.Tensor, saved: torch.Tensor, key: str, folder: Path) -> None:
    if own.shape != saved.shape:
        raise AdapterError(
            f"{folder}: was made on resized embeddings: {key} has {saved.shape[0]} rows in its file and {own.shape[0]} in this base; "
            "choose a base that was resized so (resize_token_embeddings, save_pretrained)"
        )
    narrow = min(own.dtype, saved.dtype, key=lambda dtype: dtype.itemsize)
    if not torch.equal(own.to("cpu", narrow), saved.to(narrow)):
        rows = int((own.to("cpu", narrow) != saved.to(narrow)).flatten(1).any(1).sum())
        raise AdapterError(
            f"{folder}: was made on other embeddings: {key} differs from this base's in {rows} of {len(own)} rows, so the embedding was "
            "trained, or resized and filled; choose the base that has these embeddings, or train them as lora.modules_to_save"
        )
