"""PEFT's optimizers that treat A and B differently: LoRA+ and LoRA-FA."""

from typing import Any

from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from peftrun.config.schema.lora import LoraSpec


def needs_own_optimizer(lora: Any) -> bool:
    """Whether `build_optimizer` makes one."""
    return isinstance(lora, LoraSpec) and (lora.lora_fa or lora.loraplus_lr_ratio is not None)


def build_optimizer(net: Any, lora: Any, made_by: type, settings: dict[str, Any], weight_decay: float) -> Any:
    """The optimizer that `lora` requires, with the trainer's settings; None: the trainer's own.

    Args: made_by, settings: the trainer's optimizer class and its arguments (`lr`, `betas`, …).
    """
    if not isinstance(lora, LoraSpec):
        return None
    if lora.lora_fa:
        return create_lorafa_optimizer(
            net, r=lora.r, lora_alpha=lora.lora_alpha, lr=settings["lr"], weight_decay=weight_decay
        )
    if lora.loraplus_lr_ratio is not None:
        return create_loraplus_optimizer(
            net, made_by, loraplus_lr_ratio=lora.loraplus_lr_ratio, loraplus_weight_decay=weight_decay, **settings
        )
    return None
