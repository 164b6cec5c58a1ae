"""Base and adapter as one full model, whole in memory in float32, by PEFT's own definition of every method."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from peftrun import safetensors_file
from peftrun.errors import AdapterError, ProofError
from peftrun.merge import companions
from peftrun.model import Base

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


VIRTUAL = (
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CARTRIDGE",
    "MULTITASK_PROMPT_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
)


def check(config: dict[str, Any], name: str) -> None:
    """Raises: AdapterError: an adapter with this `adapter_config.json` is no change to the weights, so nothing can be merged."""
    kind = config.get("peft_type")
    why = "puts virtual tokens before the input" if kind in VIRTUAL else None
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
        _untie(model)
        return model.merge_and_unload(safe_merge=True)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        kind = next(iter(model.peft_config.values())).peft_type.value
        reason = str(error).splitlines()[0]
        raise AdapterError(
            f"PEFT cannot merge this {kind} adapter ({reason}); keep it as an adapter on its base"
        ) from error


def save(merged: Any, base: Base, folder: Path, dtype: torch.dtype) -> None:
    """Writes the merged model, rounded once to `dtype`, and what lies beside the base's weights into `folder`."""
    companions.copy(base.folder, folder)
    merged.to(dtype).save_pretrained(folder)


def compare(merged: Any, again: Any) -> None:
    """Raises: ProofError: a tensor of the model that was read `again` from the files, in float32, is not the merged one's."""
    held = merged.state_dict()
    for key, value in again.state_dict().items():
        if key not in held or not torch.equal(held[key].float(), value):
            raise ProofError(
                f"{key}: what was read again from the merged files is not what was written; write them again, to another disk"
            )


def _untie(model: Any) -> None:
    """Output weights of their own where the adapter changes one of the two that are tied.

    PEFT merges into the embeddings in place, which would change the tied output weights as well.
    """
    tied = model.get_base_model()
    outer, inner = tied.get_output_embeddings(), tied.get_input_embeddings()
    if not any(isinstance(module, BaseTunerLayer) for module in (outer, inner)):
        return
    outer, inner = (getattr(module, "base_layer", module) for module in (outer, inner))
    if outer is not None and outer.weight is inner.weight:
        if tied.config.is_encoder_decoder:
            raise ValueError(
                "it changes embeddings that are tied, and this model computes otherwise once they are parted"
            )
        outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)
        tied.config.tie_word_embeddings = False


def stored_dtype(folder: Path) -> str:
    """The dtype that most bytes of a model folder are stored in; float32 if that is none of the usual."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        for entry in safetensors_file.entries(file):
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
    return DTYPES.get(max(sizes, key=lambda name: sizes[name]), "float32")
