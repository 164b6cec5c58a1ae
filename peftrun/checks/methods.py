"""What must hold between an adapter's method, the base it is put on and the way it is trained; light."""

import re
from collections.abc import Iterator
from typing import Any

from peftrun.artifacts.adapter_rules import CONVERTED_INITS
from peftrun.config.schema.lora import AdaLoraSpec, LoraSpec, NoAdapter
from peftrun.config.schema.peft_fields import get_extra_peft_fields

Lines = Iterator[str]
CALIBRATED_INITS = ("eva", "corda", "lora_ga")
PENALTY_FIELDS = ("kasa_config", "monteclora_config")  # add a penalty of their own to the loss that the model computes
HARMLESS_FIELDS = ("fan_in_fan_out", "layers_pattern")  # say which layers there are, and not what is done to them
VIRTUAL_TOKEN_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cartridge")


def check_module_patterns(lora: Any) -> Lines:
    """Texts that are regular expressions must be some."""
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = getattr(lora, key, None)
        try:
            re.compile(value if isinstance(value, str) else "")
        except re.error as error:
            yield (
                f"lora.{key}={value}: a text is a regular expression for whole module names, and this is none ({error}); "
                f"mend it, or type names: lora.{key}=[q_proj,v_proj]"
            )


def check_layers(lora: Any) -> Lines:
    """PEFT looks for numbers of layers in names that it is given one by one."""
    wanted, targets = getattr(lora, "layers_to_transform", None), getattr(lora, "target_modules", None)
    if wanted not in (None, []) and isinstance(targets, str):
        yield (
            f"lora.layers_to_transform={wanted}: needs the names of modules, and lora.target_modules={targets} is a text; type "
            "'lora.target_modules=[q_proj,v_proj]', or whichever you mean"
        )


def check_converted_init(lora: Any) -> Lines:
    """Initialisations that change the base: what is saved is converted to fit the untouched base.

    PEFT can do so for plain LoRA of one rank.
    """
    if not isinstance(lora, LoraSpec) or not str(lora.init_lora_weights).startswith(CONVERTED_INITS):
        return
    for key, wrong in {
        "lora.use_dora": lora.use_dora,
        "lora.rank_pattern": bool(lora.rank_pattern),
        "lora.alpha_pattern": bool(lora.alpha_pattern),
        "lora.bias": lora.bias != "none",
        "lora.lora_bias": lora.lora_bias,
        "lora.target_parameters": bool(lora.target_parameters),
        "lora.use_bdlora": lora.use_bdlora is not None,
        **{f"lora.{key}": True for key in list_extra_fields(lora)},
    }.items():
        if wrong:
            yield (
                f"{key}: cannot be combined with lora.init_lora_weights={lora.init_lora_weights}, whose adapters are "
                f"converted to fit the untouched base; leave {key} at its default"
            )


def check_optimizer(lora: Any, trainer: Any) -> Lines:
    """LoRA+ and LoRA-FA bring optimisers of their own."""
    if not isinstance(lora, LoraSpec):
        return
    if lora.lora_fa and lora.loraplus_lr_ratio is not None:
        yield "lora.loraplus_lr_ratio: LoRA+ and lora.lora_fa=true are two optimisers; type lora.loraplus_lr_ratio=null"
    for key, wrong in {"lora.use_dora": lora.use_dora, "lora.lora_bias": lora.lora_bias}.items():
        if lora.lora_fa and wrong:
            yield f"{key}=true: LoRA-FA pairs each A with its B and knows no other weights; type {key}=false"
    for key in list_penalty_fields(lora) if lora.lora_fa else []:
        yield f"lora.{key}: LoRA-FA pairs each A with its B and knows no other weights; type lora.{key}=null"
    if (lora.lora_fa or lora.loraplus_lr_ratio) and not trainer.optim.startswith("adamw"):
        yield f"trainer.optim={trainer.optim}: LoRA+ and LoRA-FA are variants of AdamW; type trainer.optim=adamw_torch"


def list_extra_fields(lora: Any) -> list[str]:
    """The fields that make something else than a plain low-rank adapter, of those that were given beside those of the dataclass."""
    return [
        key
        for key in get_extra_peft_fields(lora)
        if key not in HARMLESS_FIELDS and getattr(lora, key) not in (None, False)
    ]


def list_penalty_fields(lora: Any) -> list[str]:
    """The fields that add a penalty to the loss."""
    return [key for key in PENALTY_FIELDS if getattr(lora, key, None) is not None]


def check_penalty(lora: Any, task: Any) -> Lines:
    """A penalty belongs to a loss that the model computes itself."""
    for key in list_penalty_fields(lora) if task.objective is not None else []:
        yield f"lora.{key}: adds a penalty to the loss of a language model or classifier, and task.objective has a loss of its own; type lora.{key}=null"


def check_calibration(lora: Any, action: Any) -> Lines:
    """Initialisations that look at training rows belong to a run that reads some."""
    start = getattr(lora, "init_lora_weights", None)
    adapter_wanted = action.name in ("save", "extract")
    if start in CALIBRATED_INITS and adapter_wanted:
        yield f"lora.init_lora_weights={start}: starts from training rows, and action={action.name} reads none; type action=train"


def check_adalora(lora: Any, trainer: Any, action: Any) -> Lines:
    """AdaLoRA's schedule must end before the run does."""
    if not isinstance(lora, AdaLoraSpec):
        return
    if 0 < trainer.max_steps <= lora.tinit + lora.tfinal and action.name == "train":
        yield (
            f"lora.tinit={lora.tinit}: with lora.tfinal={lora.tfinal} leaves no step of trainer.max_steps={trainer.max_steps} to "
            f"move rank; type lora.tinit={trainer.max_steps // 6} lora.tfinal={trainer.max_steps // 3}"
        )
    if action.name == "train" and action.resume:
        yield "action.resume: AdaLoRA's importance scores are in no checkpoint, so it cannot be continued exactly; omit action.resume"
    if lora.target_r > lora.init_r:
        yield f"lora.target_r={lora.target_r}: must not be above lora.init_r={lora.init_r}; type lora.target_r={lora.init_r}"


def check_packing(lora: Any, trainer: Any) -> Lines:
    """What is put before each input cannot be put before each of several texts in one row."""
    alora = getattr(lora, "alora_invocation_tokens", None)
    for key, asked in {"packing": trainer.packing, "padding_free": trainer.padding_free}.items():
        if asked and (lora.method in VIRTUAL_TOKEN_METHODS or alora):
            yield f"trainer.{key}=true: lora.method={lora.method} works on each text by itself; type trainer.{key}=false"


def virtual_tokens(lora: Any) -> int:
    """Tokens that the method puts before each text; 0 of most."""
    return int(getattr(lora, "num_virtual_tokens", None) or 0)


def check_quantization(lora: Any, model: Any, action: Any) -> Lines:
    """What a base in few bits can carry."""
    key = f"model.quantization={model.quantization}"
    if model.quantization is not None and isinstance(lora, NoAdapter) and action.name == "train":
        yield f"{key}: rounded weights cannot be trained themselves; type lora=lora, or model.quantization=null"
    if model.quantization == "int8" and getattr(lora, "use_dora", False):
        yield f"{key}: PEFT cannot read int8 weights back for DoRA's norms; type model.quantization=nf4, or lora.use_dora=false"
    if getattr(lora, "init_lora_weights", None) == "loftq" and model.quantization not in ("nf4", "fp4"):
        yield f"{key}: LoftQ starts from what 4-bit rounding took from the base; type model.quantization=nf4"
    if str(getattr(lora, "init_lora_weights", "")).startswith(CONVERTED_INITS) and model.quantization is not None:
        yield (
            f"{key}: lora.init_lora_weights={lora.init_lora_weights} moves part of the base's weights, which rounding forbids; "
            "type lora.init_lora_weights=loftq, or model.quantization=null"
        )
