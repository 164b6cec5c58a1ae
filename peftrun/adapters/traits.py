"""Adapter traits that training and inference code must know: virtual tokens, aLoRA invocation, an adapted output layer, penalties."""

from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from peftrun.checks.methods import list_penalty_fields
from peftrun.config.schema.method_traits import get_method_traits


def needs_whole_sequence(net: Any) -> bool:
    """Whether a row must be computed in one pass: virtual tokens are prepended to each input, or aLoRA searches it for its invocation tokens."""
    return isinstance(net, PeftModel) and any(
        config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None)
        for config in net.peft_config.values()
    )


def get_invocation_tokens(net: Any) -> list[int]:
    """Token ids after which an aLoRA adapter is active; [] for other adapters, which are always active."""
    if not isinstance(net, PeftModel):
        return []
    return list(getattr(net.peft_config[net.active_adapter], "alora_invocation_tokens", None) or [])


def adapts_output_layer(net: Any) -> bool:
    """Whether the output layer is adapted, itself or because it is tied to adapted embeddings."""
    return isinstance(net, PeftModel) and isinstance(net.get_output_embeddings(), BaseTunerLayer)


def adds_to_loss(net: Any) -> bool:
    """Whether the model must compute the loss itself, since the adapter adds penalties to it or shifts its labels by virtual tokens."""
    return needs_whole_sequence(net) or (
        isinstance(net, PeftModel)
        and any(
            get_method_traits(config.peft_type).adds_to_loss or list_penalty_methods(config)
            for config in net.peft_config.values()
        )
    )


def list_penalty_methods(lora: Any) -> list[str]:
    """Names of the methods of PEFT's `LoraModel` that return penalties; adding them to the loss is left to the caller."""
    return [f"_get_{field.removesuffix('_config')}_loss" for field in list_penalty_fields(lora)]
