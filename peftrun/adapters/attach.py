"""Attaches a fresh adapter of any PEFT method to a base model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.oft import OFTLayer
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from peftrun import console
from peftrun.adapters import data_driven_init, new_tokens, offload, target_modules, traits
from peftrun.artifacts.adapter_settings import HEAD_NAMES
from peftrun.config import usage
from peftrun.config.schema.lora import AdaLoraSpec, LoraSpec
from peftrun.config.schema.method_traits import get_init_traits
from peftrun.config.schema.peft_fields import get_extra_peft_fields
from peftrun.errors import ConfigError
from peftrun.models.base import LoadedBase

TASK_TYPES = {
    "causal_lm": TaskType.CAUSAL_LM,
    "seq_cls": TaskType.SEQ_CLS,
    "token_cls": TaskType.TOKEN_CLS,
    "seq2seq": TaskType.SEQ_2_SEQ_LM,
}
LINEAR_LAYERS = (torch.nn.Linear, Conv1D)  # the only ones that joint runs can stack: see `adapters/joint`
ADAPTER_NAME = "default"  # of the adapter that is trained, where it is alone
PEFTRUN_FIELDS = ("method", "calibration_rows", "loraplus_lr_ratio", "lora_fa")  # fields that PEFT's configs lack


@dataclass(frozen=True)
class InitData:
    """What some methods need to know about the training: batches of its rows, (B, T) tensors, and its number of steps."""

    batches: list[dict[str, torch.Tensor]]
    steps: int


def attach_adapter(base: LoadedBase, lora: Any, seed: int, start: InitData | None = None) -> Any:
    """The base model with a fresh adapter `default`, whose weights depend on `seed`, `lora` and `start` only.

    Raises: ConfigError: a name in the config matches nothing in the model, PEFT refuses the method on this model, or no parameter would be trained.
    """
    target_modules.check_target_modules(base.model, lora)
    _check_init(base, lora)
    config = build_peft_config(base, lora, start)
    batches = start.batches if start else []
    set_seed(seed)  # PEFT initializes from torch's global generator
    try:
        with data_driven_init.collect_statistics(base, config, batches):
            attach = offload.add_untrained if base.device.max_memory else get_peft_model
            net = attach(base.model, config)
        data_driven_init.apply_data_driven_init(base, net, lora, batches)
        new_tokens.start_at_mean(net, base)
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
        raise to_config_error(error, lora, base) from error
    adapter_config = net.peft_config["default"]
    layout = getattr(lora, "fan_in_fan_out", None)
    if layout is not None and layout != adapter_config.fan_in_fan_out:
        # PEFT derives the layout of a weight from the layer's class and overrides the option
        console.print_info(f"lora.fan_in_fan_out={str(layout).lower()}: PEFT took the other, which these layers have")
    if getattr(lora, "prompt_tuning_init", None) == "TEXT":
        adapter_config.tokenizer_name_or_path = base.name  # it was a folder of this machine
    prepare_training(net, lora)
    _check_blocks(net, lora)
    return net


def prepare_training(net: Any, lora: Any) -> None:
    """Freezes what the method does not train, and adds its penalties to the loss. Raises: ConfigError: no parameter would be trained."""
    if isinstance(lora, LoraSpec) and lora.lora_fa:
        for name, parameter in net.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                parameter.requires_grad_(False)
    _add_penalties(net, lora)
    _check_trainable(net, lora)


def count_parameters(model: Any) -> tuple[int, int]:
    """Number of trainable parameters, and of all."""
    counts = [(count_values(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, trainable in counts if trainable), sum(count for count, _ in counts)


def count_values(parameter: Any) -> int:
    """The weights that a parameter stands for: bitsandbytes packs two of 4 bits into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return packed.shape.numel() if packed is not None else parameter.numel()


def modifies_base(lora: Any) -> bool:
    """Whether this initialization moves part of the base model's weights into the adapter."""
    return get_init_traits(getattr(lora, "init_lora_weights", None)).converted


def needs_calibration_data(lora: Any) -> bool:
    """Whether this initialization reads training rows."""
    return get_init_traits(getattr(lora, "init_lora_weights", None)).calibrated


def build_peft_config(base: LoadedBase, lora: Any, start: InitData | None) -> Any:
    """PEFT's config of an adapter. Raises: ConfigError: PEFT refuses it."""
    extra = get_extra_peft_fields(lora)  # typed by the user, so that their null is meant
    fields = {
        key: value
        for key, value in usage.collect_kwargs(lora, PEFTRUN_FIELDS).items()
        if value is not None or key in extra
    }
    fields |= _resolve_head_fields(base, lora) | _resolve_run_fields(base, lora, start)
    fields |= new_tokens.resolve_token_fields(base, lora)
    language_model = "seq2seq" if base.model.config.is_encoder_decoder else "causal_lm"
    task_type = TASK_TYPES[base.head.kind if base.head else language_model]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(lora.method.upper())]
    try:
        return config_class(**fields, task_type=task_type, base_model_name_or_path=base.name, revision=base.revision)
    except (ValueError, TypeError, ImportError) as error:
        raise to_config_error(error, lora, base) from error


def to_config_error(error: Exception, lora: Any, base: LoadedBase) -> ConfigError:
    """PEFT's refusal in one line. The rules between its fields, and which layers a method supports, are PEFT's own."""
    if base.list_new_token_ids() and "trainable_token_indices cannot be applied" in str(error):
        return ConfigError(
            "lora.target_modules: names embeddings or the output layer, whose rows of model.new_tokens are trained by themselves; leave them out, "
            "or type 'lora.modules_to_save=[NAME]' to train all rows"
        )
    if "Please specify `target_modules`" in str(error):
        model_type = base.model.config.model_type
        return ConfigError(
            f"lora.target_modules=null: PEFT's table for {lora.method} has no model of type {model_type}; type 'lora.target_modules=[NAME,NAME]'"
        )
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ConfigError(f"lora: {reason} (method {lora.method})")


def _resolve_run_fields(base: LoadedBase, lora: Any, start: InitData | None) -> dict[str, Any]:
    """Fields whose values depend on the base model or the run."""
    if isinstance(lora, AdaLoraSpec):
        # PEFT requires it; an adapter that is saved untrained never reaches these steps
        return {"total_step": start.steps if start else lora.tinit + lora.tfinal + 1}
    fields: dict[str, Any] = {}
    if getattr(lora, "prompt_tuning_init", None) == "TEXT":
        fields["tokenizer_name_or_path"] = str(base.folder)
    if isinstance(lora, LoraSpec):
        if isinstance(lora.alora_invocation_tokens, str):
            ids = base.tokenizer(lora.alora_invocation_tokens, add_special_tokens=False)["input_ids"]
            fields["alora_invocation_tokens"] = list(ids)
        if lora.init_lora_weights == "loftq":
            fields["init_lora_weights"] = True  # LoftQ's weights are set later, by apply_data_driven_init
    return fields


def _resolve_head_fields(base: LoadedBase, lora: Any) -> dict[str, Any]:
    """Fields that differ for a classifier: its head is saved in full, and `all-linear` means the encoder's layers.

    Modules that are missing in the base model's files are initialized at random at each load, so they are saved with the adapter.
    """
    if base.head is None:
        return {}
    fields: dict[str, Any] = {}
    untrained = [name for name in base.untrained_modules if name.split(".")[0] not in HEAD_NAMES]
    if untrained:
        fields["modules_to_save"] = [*(getattr(lora, "modules_to_save", None) or []), *untrained]
    if getattr(lora, "target_modules", None) == "all-linear":
        saved_in_full = tuple(f"{name}." for name in (*HEAD_NAMES, *base.untrained_modules))
        fields["target_modules"] = [
            name
            for name, module in base.model.named_modules()
            if isinstance(module, LINEAR_LAYERS) and not f"{name}.".startswith(saved_in_full)
        ]
    return fields


def _check_init(base: LoadedBase, lora: Any) -> None:
    """Raises: ConfigError: the method's initialization is not possible on this base model, or PEFT would silently ignore QA-LoRA."""
    init = getattr(lora, "init_lora_weights", None)
    if base.held and modifies_base(lora):
        raise ConfigError(
            f"lora.init_lora_weights={init}: moves part of the base's weights, which {base.held} weights forbid; "
            "type lora.init_lora_weights=true"
        )
    if getattr(lora, "use_qalora", False) and base.held != "gptq":
        raise ConfigError(
            "lora.use_qalora=true: PEFT computes QA-LoRA on GPTQ weights alone, and plain LoRA on this base; name a GPTQ model in "
            "model.name_or_path, or type lora.use_qalora=false"
        )
    if not get_init_traits(init).on_conv1d and any(isinstance(module, Conv1D) for module in base.model.modules()):
        raise ConfigError(
            f"lora.init_lora_weights={init}: PEFT cannot start it on Conv1D layers (GPT-2); type lora=pissa"
        )


def _add_penalties(net: Any, lora: Any) -> None:
    """Adds the method's penalties to every loss that the model computes in training."""
    penalties = [getattr(net.base_model, name) for name in traits.list_penalty_methods(lora)]

    def add_to_loss(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        if module.training and outputs.loss is not None:
            # The trainer sums the losses of a step's batches, each divided by the step's number of labels: each adds its share.
            step_labels = kwargs.get("num_items_in_batch")
            share = 1 if step_labels is None else (kwargs["labels"] != -100).sum() / step_labels
            outputs.loss = outputs.loss + share * sum(penalty() for penalty in penalties)

    if penalties:
        net.base_model.register_forward_hook(add_to_loss, with_kwargs=True)


def _check_trainable(net: Any, lora: Any) -> None:
    if count_parameters(net)[0]:
        return
    settings = {
        key: value
        for key, value in vars(lora).items()
        if isinstance(value, int | float | str) and key not in ("method", "target_modules")
    }
    overrides = ", ".join(f"lora.{key}={value}" for key, value in settings.items())
    raise ConfigError(
        f"lora.method={lora.method}: trains 0 parameters of this model with {overrides}; choose values that leave some to train"
    )


def _check_blocks(net: Any, lora: Any) -> None:
    """Raises: ConfigError: OFT's block size or number does not divide the inputs of a layer, where PEFT would silently choose another."""
    key = "oft_block_size" if getattr(lora, "oft_block_size", 0) else "r"
    value: int = getattr(lora, key, 0)
    layers = [module for module in net.modules() if isinstance(module, OFTLayer)]
    if any(getattr(layer, key)["default"] != value for layer in layers):
        size = math.gcd(*(layer.in_features for layer in layers))
        divisor = next(number for number in range(min(value, size), 0, -1) if size % number == 0)
        raise ConfigError(
            f"lora.{key}={value}: must divide the inputs of every adapted layer, which are multiples of {size}; type lora.{key}={divisor}"
        )


def get_step_hook(net: Any) -> Callable[[int], None] | None:
    """AdaLoRA's function to call with each step's number, after the optimizer step and before gradients are cleared; else None."""
    return getattr(net.base_model, "update_and_allocate", None)
