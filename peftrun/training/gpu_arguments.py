"""Training arguments that are chosen on an NVIDIA or AMD GPU where the config leaves a choice: faster, with the same mathematics."""

from importlib.util import find_spec
from typing import Any

from peftrun.config.schema.run import TrainerSpec
from peftrun.models.device import Device

UNSHARDED = (None, "ddp")  # strategies in which each process has the whole model


def set_gpu_arguments(
    arguments: dict[str, Any], trainer: TrainerSpec, device: Device, model: Any, data: Any
) -> tuple[str, ...]:
    """Sets what suits a GPU in the training arguments, in place; what was chosen, for the record. Nothing on other devices."""
    if device.name != "cuda":
        return ()
    choices = ["transfers beside the computation"]
    arguments["accelerator_config"] = {"non_blocking": True}  # from pinned memory, while the device computes
    if arguments["optim"] == "adamw_torch" and device.strategy in UNSHARDED:
        arguments["optim"] = "adamw_torch_fused"  # one kernel for all tensors, and no count of steps on the host
        choices.append("fused optimizer")
    if arguments["bf16"] or arguments["fp16"]:
        choices.append("inputs of LoRA layers cast once")
    if trainer.use_liger_kernel is None and device.strategy in UNSHARDED and _is_language_model(data):
        arguments["use_liger_kernel"] = has_liger_kernels(model.config.model_type)
    if arguments["use_liger_kernel"]:
        choices.append("liger kernels")
    if arguments["use_liger_kernel"] and not _is_language_model(data) and data.objective is None:
        # Its loss reads the output layer's weight, which would leave out an adapter on that layer.
        config = arguments.get("liger_kernel_config") or {}
        arguments["liger_kernel_config"] = {**config, "fused_linear_cross_entropy": False}
    return tuple(choices)


def has_liger_kernels(model_type: str) -> bool:
    """Whether liger-kernel is installed and has kernels for this architecture."""
    if find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def _is_language_model(data: Any) -> bool:
    """Whether TRL's SFTTrainer trains it. The losses of other objectives change with liger, which must then be asked for."""
    return data.collator is None and data.objective is None
