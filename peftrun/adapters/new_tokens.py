"""Embeddings of the tokens that `model.new_tokens` adds: LoRA's `trainable_token_indices` trains their rows and saves nothing else of them."""

from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper

from peftrun.config.schema.lora import LoraSpec
from peftrun.errors import ConfigError
from peftrun.models.base import LoadedBase


def resolve_token_fields(base: LoadedBase, lora: Any) -> dict[str, Any]:
    """LoRA's `trainable_token_indices` with the new tokens, in the input embeddings and in an output layer of its own weights.

    Modules that `lora.modules_to_save` trains in full are left out. Empty without new tokens.
    Raises: ConfigError: PEFT would leave out the output layer's bias.
    """
    new_ids = base.list_new_token_ids()
    if not new_ids or not isinstance(lora, LoraSpec):
        return {}
    embeddings, outputs = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    names = {id(module): name for name, module in base.model.named_modules()}
    modules = [names[id(embeddings)]]
    if outputs is not None and outputs.weight is not embeddings.weight:
        modules.append(names[id(outputs)])
    if getattr(outputs, "bias", None) is not None:
        raise ConfigError(
            f"model.new_tokens: {names[id(outputs)]} of {base.name} has a bias, which PEFT leaves out where single rows are trained; "
            "train a full copy: type lora=none"
        )
    requested = lora.trainable_token_indices or {}
    if isinstance(requested, list):
        requested = {modules[0]: requested}
    targets = {name: new_ids for name in modules if not _is_named(name, lora.modules_to_save or [])}
    for key, ids in requested.items():  # PEFT takes a module's name or the end of it
        name = next((module for module in modules if _is_named(module, [key])), key)
        targets[name] = [*ids, *(token for token in targets.get(name, []) if token not in ids)]
    return {"trainable_token_indices": targets or None}


def _is_named(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def start_at_mean(net: Any, base: LoadedBase, adapter: str = "default") -> None:
    """Sets the new tokens' rows of a fresh adapter to the mean of the rows before them, also where the base model has unused rows for them."""
    new_ids = base.list_new_token_ids()
    wrappers = [module for module in net.modules() if new_ids and isinstance(module, TrainableTokensWrapper)]
    for token_adapter in [wrapper.token_adapter for wrapper in wrappers if not wrapper.token_adapter.tied_adapter]:
        weight, ids = (
            token_adapter.get_base_layer().weight,
            token_adapter.token_indices[adapter],
        )  # (vocabulary, hidden)
        rows = [position for position, token in enumerate(ids) if token in new_ids]
        trained = token_adapter.trainable_tokens_delta[adapter].data  # float32 also on a base model in bfloat16
        trained[rows] = weight[: min(new_ids)].mean(0, dtype=torch.float32).to(trained.dtype)
