"""A fresh adapter on a base, by any of PEFT's methods."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.oft import OFTLayer
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.constants import MIN_TARGET_MODULES_FOR_OPTIMIZATION
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from peftrun import console
from peftrun.adapters import data_driven_init, offload, target_modules, traits
from peftrun.artifacts.adapter_rules import CONVERTED_INITS
from peftrun.config import usage
from peftrun.config.schema.lora import AdaLoraSpec, LoraSpec
from peftrun.config.schema.peft_fields import get_extra_peft_fields
from peftrun.errors import ConfigError
from peftrun.models.base import LoadedBase
from peftrun.result import TrainAlone

TASK_TYPES = {
    "causal_lm": TaskType.CAUSAL_LM,
    "seq_cls": TaskType.SEQ_CLS,
    "token_cls": TaskType.TOKEN_CLS,
    "seq2seq": TaskType.SEQ_2_SEQ_LM,
}
STACKABLE_LAYERS = (torch.nn.Linear, Conv1D)  # layers whose matrices of several cells are stacked: see `adapter.joint`
HEAD_NAMES = ("classifier", "score")  # PEFT itself adds these to modules_to_save
PEFTRUN_FIELDS = ("method", "calibration_rows", "loraplus_lr_ratio", "lora_fa")  # fields that are none of PEFT's config


@dataclass(frozen=True)
class InitData:
    """What some methods must know of the training ahead: batches of its rows (tensors), and how many steps it takes."""

    batches: list[dict[str, torch.Tensor]]
    steps: int


def attach_adapter(base: LoadedBase, lora: Any, seed: int, start: InitData | None = None) -> Any:
    """The base wrapped with a fresh adapter named `default`, whose weights depend on `seed`, `lora` and `start` alone.

    Raises: ConfigError: a name in the config matches nothing in the model, PEFT refuses the method on this model, or nothing would be trained.
    """
    target_modules.check_target_modules(base.model, lora)
    if base.held and modifies_base(lora):
        raise ConfigError(
            f"lora.init_lora_weights={lora.init_lora_weights}: moves part of the base's weights, which {base.held} weights forbid; "
            "type lora.init_lora_weights=true"
        )
    _check_qalora(base, lora)
    config = _build_peft_config(base, lora, start)
    set_seed(seed)
    try:
        _check_orthonormal(base.model, lora)
        with data_driven_init.collect_statistics(base, config, start.batches if start else []):
            net = (
                offload.add_untrained(base.model, config)
                if base.device.max_memory
                else get_peft_model(base.model, config)
            )
        data_driven_init.apply_data_driven_init(base, net, lora, start.batches if start else [])
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
        raise _to_config_error(error, lora, base) from error
    _report_layout(net, lora)
    if getattr(lora, "prompt_tuning_init", None) == "TEXT":
        net.peft_config["default"].tokenizer_name_or_path = base.name  # the folder is of this machine
    net = _freeze_lora_a(net, lora)
    _add_penalties(net, lora)
    _check_trainable(net, lora)
    _check_blocks(net, lora)
    return net


def attach_jointly(
    base: LoadedBase, cells: dict[str, tuple[Any, int]]
) -> tuple[Any, dict[str, ConfigError | TrainAlone]]:
    """The base wrapped with a fresh adapter for each cell (name → its `lora` and seed), each with the weights it would have alone.

    Returns: the wrapped base (None where no cell is left), and why the others have no adapter: a fault, or layers that need a pass of their own.
    """
    ready: dict[str, Any] = {}
    refused: dict[str, ConfigError | TrainAlone] = {}
    for name, (lora, seed) in cells.items():  # all of them first: the names of modules change with the first adapter
        try:
            target_modules.check_target_modules(base.model, lora)
            ready[name] = (_build_peft_config(base, lora, None), lora, seed)
        except ConfigError as fault:
            refused[name] = fault
    found = {name: _resolve_targets(base.model, config) for name, (config, _, _) in ready.items()}
    for name, config in found.items():
        odd = {
            type(one).__name__
            for one in map(base.model.get_submodule, config.target_modules)
            if not isinstance(one, STACKABLE_LAYERS)
        }
        if odd:
            refused[name] = TrainAlone(f"lora.target_modules names {min(odd)} layers")
            del ready[name]
    transposed = any(isinstance(module, Conv1D) for module in base.model.modules())
    net: Any = None
    for name, (config, lora, seed) in ready.items():
        set_seed(seed)
        try:
            if net is None:
                net = get_peft_model(base.model, found[name], adapter_name=name)
            else:
                net.add_adapter(name, found[name])
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            refused[name] = _to_config_error(error, lora, base)
            continue
        _restore_requested_targets(net.peft_config[name], config)
        net.peft_config[name].fan_in_fan_out = transposed
    return net, refused


def _resolve_targets(model: Any, config: Any) -> Any:
    """The same config with the full name of each module that it picks, which picks the same where others are adapted already."""
    asked = _maybe_include_all_linear_layers(copy.copy(config), model)
    names = {name for name, _ in model.named_modules() if check_target_module_exists(asked, name)}
    found = copy.copy(config)
    found.target_modules, found.exclude_modules, found.layers_to_transform = names, None, None
    return found


def _restore_requested_targets(kept: Any, config: Any) -> None:
    """What is saved says what was asked for, as it does where an adapter is alone."""
    asked = config.target_modules
    if asked != "all-linear" and (isinstance(asked, str) or len(asked) < MIN_TARGET_MODULES_FOR_OPTIMIZATION):
        kept.target_modules = config.target_modules
    kept.exclude_modules, kept.layers_to_transform = config.exclude_modules, config.layers_to_transform


def count_parameters(model: Any) -> tuple[int, int]:
    """Number of trainable parameters, and of all."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, wanted in counts if wanted), sum(n for n, _ in counts)


def modifies_base(lora: Any) -> bool:
    """Whether this initialisation moves part of the base's weights into the adapter."""
    return str(getattr(lora, "init_lora_weights", "")).startswith(CONVERTED_INITS)


def needs_calibration_data(lora: Any) -> bool:
    """Whether this initialisation looks at training rows."""
    return getattr(lora, "init_lora_weights", "") in ("eva", "corda", "lora_ga")


def _build_peft_config(base: LoadedBase, lora: Any, start: InitData | None) -> Any:
    given = get_extra_peft_fields(lora)
    chosen = {
        key: value
        for key, value in usage.collect_kwargs(lora, PEFTRUN_FIELDS).items()
        if value is not None or key in given
    }
    chosen |= _resolve_head_fields(base, lora) | _resolve_run_fields(base, lora, start)
    plain = "seq2seq" if base.model.config.is_encoder_decoder else "causal_lm"
    kind = TASK_TYPES[base.head.kind if base.head else plain]
    made = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(lora.method.upper())]
    try:
        return made(**chosen, task_type=kind, base_model_name_or_path=base.name, revision=base.revision)
    except (ValueError, TypeError, ImportError) as error:
        raise _to_config_error(error, lora, base) from error


def _to_config_error(error: Exception, lora: Any, base: LoadedBase) -> ConfigError:
    """What PEFT refuses, in one line; it owns the rules between its own fields, and knows which layers a method can work on."""
    if "Please specify `target_modules`" in str(error):
        kind = base.model.config.model_type
        return ConfigError(
            f"lora.target_modules=null: PEFT's table for {lora.method} has no model of type {kind}; type 'lora.target_modules=[NAME,NAME]'"
        )
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ConfigError(f"lora: {reason} (method {lora.method})")


def _resolve_run_fields(base: LoadedBase, lora: Any, start: InitData | None) -> dict[str, Any]:
    """Values that only this base and this run can give."""
    if isinstance(lora, AdaLoraSpec):
        # an adapter that is saved untrained never reaches these steps
        return {"total_step": start.steps if start else lora.tinit + lora.tfinal + 1}
    changed: dict[str, Any] = {}
    if getattr(lora, "prompt_tuning_init", None) == "TEXT":
        changed["tokenizer_name_or_path"] = str(base.folder)
    if isinstance(lora, LoraSpec):
        if isinstance(lora.alora_invocation_tokens, str):
            ids = base.tokenizer(lora.alora_invocation_tokens, add_special_tokens=False)["input_ids"]
            changed["alora_invocation_tokens"] = list(ids)
        if lora.init_lora_weights == "loftq":
            changed["init_lora_weights"] = True  # replaced once the layers are there
    return changed


def _resolve_head_fields(base: LoadedBase, lora: Any) -> dict[str, Any]:
    """What a classifier's config says otherwise: its head is saved in full, and `all-linear` means the encoder's layers.

    All that the base's files do not hold is drawn at random wherever the base is loaded, so it travels with the adapter.
    """
    if base.head is None:
        return {}
    changed: dict[str, Any] = {}
    whole = (*HEAD_NAMES, *base.untrained_modules)
    beside = [name for name in base.untrained_modules if name.split(".")[0] not in HEAD_NAMES]
    if beside:
        changed["modules_to_save"] = [*(getattr(lora, "modules_to_save", None) or []), *beside]
    if getattr(lora, "target_modules", None) == "all-linear":
        linear = [
            name
            for name, module in base.model.named_modules()
            if isinstance(module, target_modules.TARGETABLE_LAYERS[::2])
        ]
        changed["target_modules"] = [
            name for name in linear if not f"{name}.".startswith(tuple(f"{one}." for one in whole))
        ]
    return changed


def _check_orthonormal(model: Any, lora: Any) -> None:
    # PEFT 0.21 takes a Conv1D's weight for a Linear's there, and the shapes come out transposed.
    start = getattr(lora, "init_lora_weights", None)
    if start in ("olora", "lora_ga", "corda") and any(isinstance(module, Conv1D) for module in model.modules()):
        raise ConfigError(
            f"lora.init_lora_weights={start}: PEFT cannot start it on Conv1D layers (GPT-2); type lora=pissa"
        )


def _check_qalora(base: LoadedBase, lora: Any) -> None:
    if getattr(lora, "use_qalora", False) and base.held != "gptq":
        raise ConfigError(
            "lora.use_qalora=true: PEFT computes QA-LoRA on GPTQ weights alone, and plain LoRA on this base; name a GPTQ model in "
            "model.name_or_path, or type lora.use_qalora=false"
        )


def _report_layout(net: Any, lora: Any) -> None:
    """PEFT sees by the kind of a layer how its weight lies, whatever it is told."""
    asked = getattr(lora, "fan_in_fan_out", None)
    if asked is not None and asked != net.peft_config["default"].fan_in_fan_out:
        console.print_info(f"lora.fan_in_fan_out={str(asked).lower()}: PEFT took the other, which these layers have")


def _freeze_lora_a(net: Any, lora: Any) -> Any:
    if isinstance(lora, LoraSpec) and lora.lora_fa:
        for name, parameter in net.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                parameter.requires_grad_(False)
    return net


def _add_penalties(net: Any, lora: Any) -> None:
    """From now on a loss that the model computes in training holds what the method adds to it."""
    added = [getattr(net.base_model, name) for name in traits.list_penalty_methods(lora)]

    def add(module: Any, args: Any, given: dict[str, Any], outputs: Any) -> None:
        if module.training and outputs.loss is not None:
            whole = given.get(
                "num_items_in_batch"
            )  # labels of all the batches of a step: each brings its share of the penalty
            share = 1 if whole is None else (given["labels"] != -100).sum() / whole
            outputs.loss = outputs.loss + share * sum(penalty() for penalty in added)

    if added:
        net.base_model.register_forward_hook(add, with_kwargs=True)


def _check_trainable(net: Any, lora: Any) -> None:
    if count_parameters(net)[0]:
        return
    settings = {
        key: value
        for key, value in vars(lora).items()
        if isinstance(value, int | float | str) and key not in ("method", "target_modules")
    }
    asked = ", ".join(f"lora.{key}={value}" for key, value in settings.items())
    raise ConfigError(
        f"lora.method={lora.method}: trains 0 parameters of this model with {asked}; choose values that leave some to train"
    )


def _check_blocks(net: Any, lora: Any) -> None:
    """OFT takes another size or number of blocks, layer by layer, where the one that was asked for does not divide the layer's inputs."""
    key = "oft_block_size" if getattr(lora, "oft_block_size", 0) else "r"
    asked: int = getattr(lora, key, 0)
    layers = [module for module in net.modules() if isinstance(module, OFTLayer)]
    if any(getattr(layer, key)["default"] != asked for layer in layers):
        size = math.gcd(*(layer.in_features for layer in layers))
        fits = next(value for value in range(min(asked, size), 0, -1) if size % value == 0)
        raise ConfigError(
            f"lora.{key}={asked}: must divide the inputs of every adapted layer, which are multiples of {size}; type lora.{key}={fits}"
        )


def get_step_hook(net: Any) -> Callable[[int], None] | None:
    """What is to be called with the number of each step, once the weights have moved and before gradients are cleared: AdaLoRA's."""
    return getattr(net.base_model, "update_and_allocate", None)
