"""Merges an adapter into a base model that is in memory in float32, with PEFT's own merge of each method."""

from pathlib import Path
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper

from peftrun.adapters import saved_base
from peftrun.adapters.merge import sidecar_files
from peftrun.artifacts import adapter_rules
from peftrun.errors import AdapterError, ProofError
from peftrun.io import safetensors_header
from peftrun.models.base import LoadedBase

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def check_mergeable(config: dict[str, Any], name: str) -> None:
    """Raises: AdapterError: an adapter with this `adapter_config.json` is not a change of the weights, so it cannot be merged."""
    if reason := adapter_rules.why_not_merged(config):
        raise AdapterError(
            f"adapter.{name}: cannot merge this {config.get('peft_type')} adapter, which {reason}; keep it as an adapter on its base model"
        )


def merge(model: Any) -> Any:
    """transformers' model with the adapter merged into its weights, in float32. `model` cannot be used afterwards.

    Raises: AdapterError: PEFT cannot merge this adapter.
    """
    try:
        base = model.get_base_model()
        tied = bool(getattr(base.config, "tie_word_embeddings", False))
        _untie_weights(base)
        merged = model.merge_and_unload(safe_merge=True)
        # LN tuning: PEFT leaves modules that were trained in full in their wrappers
        wrappers = {path: m for path, m in merged.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)}
        for path, wrapper in wrappers.items():
            merged.set_submodule(path, wrapper.unload_and_optionally_merge_module(True, True, None))
        _retie_weights(merged, tied)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        peft_type = next(iter(model.peft_config.values())).peft_type.value
        reason = str(error).splitlines()[0]
        raise AdapterError(
            f"PEFT cannot merge this {peft_type} adapter ({reason}); keep it as an adapter on its base model"
        ) from error
    return merged


def save(merged: Any, base: LoadedBase, folder: Path, dtype: torch.dtype) -> None:
    """Writes the merged model into `folder`, rounded once to `dtype`, with the base model's tokenizer and other files."""
    sidecar_files.copy_sidecar_files(base.folder, folder)
    merged.to(dtype).save_pretrained(folder)


def check_saved_equals_merged(merged: Any, reloaded: Any) -> None:
    """Raises: ProofError: a tensor of the model that was `reloaded` from the files, in float32, differs from the merged model's."""
    expected = merged.state_dict()
    for key, value in reloaded.state_dict().items():
        if key not in expected or not torch.equal(expected[key].float(), value):
            raise ProofError(
                f"{key}: reading the merged files does not give what was written; write them again, to another disk"
            )


def _untie_weights(base: Any) -> None:
    """Copies each tied weight if the adapter changes it or the weight that it is tied to.

    PEFT merges into embeddings in place, which would change the tied output weights as well.
    """
    keys = (key for key, _ in base.named_parameters(remove_duplicate=False) if ".modules_to_save." not in key)
    wrapped = {saved_base.strip_wrappers(key): key for key in keys}
    tied = base.all_tied_weights_keys
    if all(wrapped.get(name) == name for pair in tied.items() for name in pair):
        return
    for target in tied:
        value = base.get_parameter(wrapped[target]).detach().clone()
        _set_parameter(base, wrapped[target], torch.nn.Parameter(value, requires_grad=False))


def _retie_weights(merged: Any, tied: bool) -> None:
    """Ties weights that are still equal. `tied`: `tie_word_embeddings` of the base model, which becomes False if output weights differ.

    Raises: ValueError: other weights differ that this model reads from one tensor.
    """
    untied = []
    for target, source in merged.all_tied_weights_keys.items():
        weight, shared = merged.get_parameter(target), merged.get_parameter(source)
        if torch.equal(weight, shared):
            _set_parameter(merged, target, shared)
        elif weight is getattr(merged.get_output_embeddings(), "weight", None):
            untied.append(target)
        else:
            raise ValueError(f"{target} and {source} are one tensor in this model, and it changes only one of them")
    # An encoder-decoder's two embeddings stay tied; transformers unties output weights by itself if the file has them.
    merged.config.tie_word_embeddings = tied and (merged.config.is_encoder_decoder or not untied)


def _set_parameter(model: Any, name: str, value: torch.nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, value)


def detect_stored_dtype(folder: Path) -> str:
    """The dtype of most bytes of a model folder; float32 if it is none of `DTYPE_NAMES`."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        for entry in safetensors_header.read_header(file):
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    return DTYPE_NAMES.get(max(sizes, key=lambda name: sizes[name]), "float32")
