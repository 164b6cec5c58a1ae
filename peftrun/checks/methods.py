"""Rules between an adapter's method, its base model and its training. Light."""

import re
from collections.abc import Iterator
from typing import Any

from peftrun.config.schema.lora import AdaLoraSpec, LoraSpec, NoAdapter
from peftrun.config.schema.method_traits import get_init_traits, get_method_traits
from peftrun.config.schema.peft_fields import get_extra_peft_fields
from peftrun.config.schema.quantization_formats import FORMATS

Lines = Iterator[str]
PENALTY_FIELDS = ("kasa_config", "monteclora_config")  # PEFT adds their penalty to the loss that the model computes
UNCALIBRATED = ("save", "extract")  # actions that make a new adapter and read no training rows
HARMLESS_FIELDS = ("fan_in_fan_out", "layers_pattern")  # describe the layers, and leave a plain low-rank adapter


def check_module_patterns(lora: Any) -> Lines:
    """A string for modules is a regular expression, and must compile."""
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = getattr(lora, key, None)
        try:
            re.compile(value if isinstance(value, str) else "")
        except re.error as error:
            yield (
                f"lora.{key}={value}: a string must be a regular expression for full module names ({error}); "
                f"fix it, or type names: lora.{key}=[q_proj,v_proj]"
            )


def check_layers(lora: Any) -> Lines:
    """PEFT applies layers_to_transform only to a list of module names, not to a regular expression."""
    layers, targets = getattr(lora, "layers_to_transform", None), getattr(lora, "target_modules", None)
    if layers not in (None, []) and isinstance(targets, str):
        yield (
            f"lora.layers_to_transform={layers}: needs a list of module names, and lora.target_modules={targets} is a string; type "
            "'lora.target_modules=[q_proj,v_proj]', or the names you mean"
        )


def check_converted_init(lora: Any) -> Lines:
    """Initializations such as PiSSA change the base model; PEFT converts such an adapter, on saving, to the unchanged one.

    That conversion exists only for plain LoRA with the same rank and alpha everywhere.
    """
    if not isinstance(lora, LoraSpec) or not get_init_traits(lora.init_lora_weights).converted:
        return
    for key, is_set in {
        "lora.use_dora": lora.use_dora,
        "lora.rank_pattern": bool(lora.rank_pattern),
        "lora.alpha_pattern": bool(lora.alpha_pattern),
        "lora.bias": lora.bias != "none",
        "lora.lora_bias": lora.lora_bias,
        "lora.target_parameters": bool(lora.target_parameters),
        "lora.use_bdlora": lora.use_bdlora is not None,
        **{f"lora.{key}": True for key in list_extra_fields(lora)},
    }.items():
        if is_set:
            yield (
                f"{key}: cannot be combined with lora.init_lora_weights={lora.init_lora_weights}, whose adapters are "
                f"converted to fit the unchanged base model; leave {key} at its default"
            )


def check_optimizer(lora: Any, trainer: Any) -> Lines:
    """LoRA+ and LoRA-FA replace the optimizer by their own variant of AdamW."""
    if not isinstance(lora, LoraSpec):
        return
    if lora.lora_fa and lora.loraplus_lr_ratio is not None:
        yield "lora.loraplus_lr_ratio: LoRA+ and lora.lora_fa=true are two different optimizers; type lora.loraplus_lr_ratio=null"
    for key, is_set in {"lora.use_dora": lora.use_dora, "lora.lora_bias": lora.lora_bias}.items():
        if lora.lora_fa and is_set:
            yield f"{key}=true: LoRA-FA's optimizer supports only pairs of A and B; type {key}=false"
    for key in list_penalty_fields(lora) if lora.lora_fa else []:
        yield f"lora.{key}: LoRA-FA's optimizer supports only pairs of A and B; type lora.{key}=null"
    if (lora.lora_fa or lora.loraplus_lr_ratio) and not trainer.optim.startswith("adamw"):
        yield f"trainer.optim={trainer.optim}: LoRA+ and LoRA-FA are variants of AdamW; type trainer.optim=adamw_torch"


def list_extra_fields(lora: Any) -> list[str]:
    """Fields of PEFT's config, set in addition to the dataclass's, that change the adapter from a plain low-rank one."""
    return [
        key
        for key in get_extra_peft_fields(lora)
        if key not in HARMLESS_FIELDS and getattr(lora, key) not in (None, False)
    ]


def list_penalty_fields(lora: Any) -> list[str]:
    """The fields that are set and add a penalty to the loss."""
    return [key for key in PENALTY_FIELDS if getattr(lora, key, None) is not None]


def check_penalty(lora: Any, task: Any) -> Lines:
    """PEFT adds a penalty to the model's own loss; the losses of objectives are computed in TRL's trainers."""
    for key in list_penalty_fields(lora) if task.objective is not None else []:
        yield f"lora.{key}: adds a penalty to the loss of a language model or classifier, and task.objective has its own loss; type lora.{key}=null"


def check_calibration(lora: Any, action: Any) -> Lines:
    """Data-driven initializations need an action that reads training rows."""
    init = getattr(lora, "init_lora_weights", None)
    if get_init_traits(init).calibrated and action.name in UNCALIBRATED:
        yield f"lora.init_lora_weights={init}: needs training rows, and action={action.name} reads none; type action=train"


def check_adalora(lora: Any, trainer: Any, action: Any) -> Lines:
    """AdaLoRA's schedule must end before the run does."""
    if not isinstance(lora, AdaLoraSpec):
        return
    # Rank is reallocated in the steps after tinit and before the last tfinal.
    if 0 < trainer.max_steps <= lora.tinit + lora.tfinal and action.name == "train":
        yield (
            f"lora.tinit={lora.tinit}: with lora.tfinal={lora.tfinal} leaves no step of trainer.max_steps={trainer.max_steps} to "
            f"reallocate rank; type lora.tinit={trainer.max_steps // 6} lora.tfinal={trainer.max_steps // 3}"
        )
    if action.name == "train" and action.resume:
        yield "action.resume: AdaLoRA's importance scores are not in checkpoints, so it cannot be resumed exactly; omit action.resume"
    if lora.target_r > lora.init_r:
        yield f"lora.target_r={lora.target_r}: must not be above lora.init_r={lora.init_r}; type lora.target_r={lora.init_r}"


def check_packing(lora: Any, trainer: Any) -> Lines:
    """Virtual tokens and aLoRA's invocation belong to one text; a packed row has several."""
    alora = getattr(lora, "alora_invocation_tokens", None)
    for key, enabled in {"packing": trainer.packing, "padding_free": trainer.padding_free}.items():
        if enabled and (get_method_traits(lora.method).virtual_tokens or alora):
            yield f"trainer.{key}=true: lora.method={lora.method} needs one text per row; type trainer.{key}=false"


def virtual_tokens(lora: Any) -> int:
    """Number of virtual tokens that the method prepends to each text; 0 for most methods."""
    return int(getattr(lora, "num_virtual_tokens", None) or 0)


def check_quantization(lora: Any, model: Any, action: Any) -> Lines:
    """The method and the action can work on a quantized base model."""
    key, chosen = f"model.quantization={model.quantization}", FORMATS.get(model.quantization or "")
    if chosen and chosen.no_gradient and action.name in ("train", "plan"):
        yield f"{key}: {chosen.no_gradient}, so no adapter can be trained on it; type model.quantization=nf4"
    if model.quantization is not None and isinstance(lora, NoAdapter) and action.name == "train":
        yield f"{key}: quantized weights cannot be trained; type lora=lora, or model.quantization=null"
    if model.quantization == "int8" and getattr(lora, "use_dora", False):
        yield f"{key}: PEFT cannot dequantize int8 weights for DoRA's norms; type model.quantization=nf4, or lora.use_dora=false"
    if getattr(lora, "init_lora_weights", None) == "loftq" and model.quantization not in ("nf4", "fp4"):
        yield f"{key}: LoftQ starts from the error of 4-bit quantization; type model.quantization=nf4"
    if get_init_traits(getattr(lora, "init_lora_weights", None)).converted and model.quantization is not None:
        yield (
            f"{key}: lora.init_lora_weights={lora.init_lora_weights} changes the base model's weights, which cannot be done in a quantized model; "
            "type lora.init_lora_weights=loftq, or model.quantization=null"
        )
