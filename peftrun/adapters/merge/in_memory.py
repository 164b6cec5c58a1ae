"""Base and adapter as one full model, whole in memory in float32, by PEFT's own definition of every method."""

from pathlib import Path
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper

from peftrun.adapters import saved_base
from peftrun.adapters.merge import sidecar_files
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.errors import AdapterError, ProofError
from peftrun.io import safetensors_header
from peftrun.models.base import LoadedBase

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def check_mergeable(config: dict[str, Any], name: str) -> None:
    """Raises: AdapterError: an adapter with this `adapter_config.json` is no change to the weights, so nothing can be merged."""
    kind = config.get("peft_type")
    why = None if get_method_traits(kind).merges else "answers with virtual tokens, which are no weights"
    if config.get("alora_invocation_tokens"):
        why = "is on only after a text that calls it"
    if config.get("layer_replication"):
        why = "repeats layers of the base (layer_replication), which shares their weights and a merged model cannot"
    if why:
        raise AdapterError(
            f"adapter.{name}: cannot merge this {kind} adapter, which {why}; keep it as an adapter on its base"
        )


def merge(model: Any) -> Any:
    """transformers' model with the adapter in its weights, in float32. `model` is used up.

    Raises: AdapterError: PEFT cannot merge this adapter.
    """
    try:
        base = model.get_base_model()
        tied = bool(getattr(base.config, "tie_word_embeddings", False))
        _untie_weights(base)
        merged = model.merge_and_unload(safe_merge=True)
        _unwrap_modules(merged)
        _retie_weights(merged, tied)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        kind = next(iter(model.peft_config.values())).peft_type.value
        reason = str(error).splitlines()[0]
        raise AdapterError(
            f"PEFT cannot merge this {kind} adapter ({reason}); keep it as an adapter on its base"
        ) from error
    return merged


def save(merged: Any, base: LoadedBase, folder: Path, dtype: torch.dtype) -> None:
    """Writes the merged model, rounded once to `dtype`, and what lies beside the base's weights into `folder`."""
    sidecar_files.copy_sidecar_files(base.folder, folder)
    merged.to(dtype).save_pretrained(folder)


def check_saved_equals_merged(merged: Any, again: Any) -> None:
    """Raises: ProofError: a tensor of the model that was read `again` from the files, in float32, is not the merged one's."""
    held = merged.state_dict()
    for key, value in again.state_dict().items():
        if key not in held or not torch.equal(held[key].float(), value):
            raise ProofError(
                f"{key}: what was read again from the merged files is not what was written; write them again, to another disk"
            )


def _untie_weights(base: Any) -> None:
    """A copy of its own for each weight that is tied to another, where the adapter changes one of them.

    PEFT merges into embeddings in place, which would change the tied output weights as well.
    """
    own = (key for key, _ in base.named_parameters(remove_duplicate=False) if ".modules_to_save." not in key)
    held = {saved_base.strip_wrappers(key): key for key in own}
    tied = base.all_tied_weights_keys
    if all(held.get(name) == name for pair in tied.items() for name in pair):
        return
    for target in tied:
        value = base.get_parameter(held[target]).detach().clone()
        _set_parameter(base, held[target], torch.nn.Parameter(value, requires_grad=False))


def _unwrap_modules(merged: Any) -> None:
    """Puts what was trained in full in the base's place where PEFT has not done so (LN tuning)."""
    wrapped = [(path, one) for path, one in merged.named_modules() if isinstance(one, AuxiliaryTrainingWrapper)]
    for path, one in wrapped:
        merged.set_submodule(path, one.unload_and_optionally_merge_module(True, True, None))


def _retie_weights(merged: Any, tied: bool) -> None:
    """Ties what has come out equal, and notes what has not. `tied`: what the base's config says.

    Raises: ValueError: weights differ that this model reads from one place.
    """
    apart = []
    for target, source in merged.all_tied_weights_keys.items():
        own, other = merged.get_parameter(target), merged.get_parameter(source)
        if torch.equal(own, other):
            _set_parameter(merged, target, other)
        elif own is getattr(merged.get_output_embeddings(), "weight", None):
            apart.append(target)
        else:
            raise ValueError(f"{target} and {source} are one in this model, and it changes one of them alone")
    # The embeddings of an encoder-decoder stay tied to each other: transformers leaves output weights apart that a file holds beside them.
    merged.config.tie_word_embeddings = tied and (merged.config.is_encoder_decoder or not apart)


def _set_parameter(model: Any, name: str, value: torch.nn.Parameter) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, value)


def detect_stored_dtype(folder: Path) -> str:
    """The dtype that most bytes of a model folder are stored in; float32 if that is none of the usual."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        for entry in safetensors_header.read_header(file):
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    return DTYPE_NAMES.get(max(sizes, key=lambda name: sizes[name]), "float32")
