"""What an adapter does beside changing weights, for those who compute with it."""

from typing import Any

from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer

from peftrun.checks.methods import list_penalty_fields


def needs_whole_sequence(net: Any) -> bool:
    """Whether a row must pass in one piece: virtual tokens are put before each input, or aLoRA looks for the text that calls it."""
    return isinstance(net, PeftModel) and any(
        config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None)
        for config in net.peft_config.values()
    )


def get_invocation_tokens(net: Any) -> list[int]:
    """Token ids after which an aLoRA adapter is on; none for the others, which are always on."""
    if not isinstance(net, PeftModel):
        return []
    return list(getattr(net.peft_config[net.active_adapter], "alora_invocation_tokens", None) or [])


def adapts_output_layer(net: Any) -> bool:
    """Whether the output layer itself is adapted, alone or because it is tied to adapted embeddings."""
    return isinstance(net, PeftModel) and isinstance(net.get_output_embeddings(), BaseTunerLayer)


def adds_to_loss(net: Any) -> bool:
    """Whether the loss must be computed where the adapter can add to it or shift its labels: penalties, virtual tokens."""
    return needs_whole_sequence(net) or (
        isinstance(net, PeftModel)
        and any(
            config.peft_type == PeftType.ADALORA or list_penalty_methods(config) for config in net.peft_config.values()
        )
    )


def list_penalty_methods(lora: Any) -> list[str]:
    """The methods of `LoraModel` whose value belongs to the loss of training; PEFT leaves it to the caller to add it."""
    return [f"_get_{field.removesuffix('_config')}_loss" for field in list_penalty_fields(lora)]
