"""Fields of PEFT's configs and their types, parsed from its source, since importing PEFT takes seconds. Light.

The dataclasses of group `lora` have the fields of `conf/lora`; any other field of PEFT's config of the method may be added on the command line.
"""

import ast
from functools import cache
from typing import Any

from pydantic.dataclasses import dataclass

from peftrun.config.schema.library_fields import parse_module, read_fields
from peftrun.config.schema.lora import STRICT

SET_BY_PEFTRUN = dict.fromkeys(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"),
    "it is set from lora.method, the base model and the task",
)
OF_THE_MODEL = dict.fromkeys(
    ("num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"),
    "PEFT reads it from the base model",
)
TOKENIZER = dict.fromkeys(("tokenizer_kwargs", "tokenizer_name_or_path"), "it is the base model's own tokenizer")
MEGATRON = dict.fromkeys(("megatron_config", "megatron_core"), "it loads no Megatron layers")
NOT_OFFERED = {  # field → why it cannot be set
    **SET_BY_PEFTRUN,
    **OF_THE_MODEL,
    **TOKENIZER,
    **MEGATRON,
    "arrow_config": "it routes between other adapters, which a run does not load",
    "loftq_config": "it computes LoftQ itself; type lora=loftq",
    "runtime_config": "it concerns one machine and is not saved with an adapter",
    "total_step": "it is the run's own number of steps",
}
NEVER_READ = {  # method → fields that PEFT 0.21 accepts and saves, but does not use
    "adalora": (
        "r", "alora_invocation_tokens", "alpha_pattern", "corda_config", "ensure_weight_tying", "eva_config", "kasa_config",
        "layer_replication", "lora_bias", "lora_ga_config", "monteclora_config", "qalora_group_size", "rank_pattern",
        "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
    ),
    "hira": ("rank_pattern",),
}  # fmt: skip
NARROWER = {
    ("adalora", "init_lora_weights"): bool
}  # types narrower than PEFT's annotation, where it ignores the other values


def explain_unsupported(method: str, field: str) -> str | None:
    """Why a field of PEFT's config of this method cannot be set; None if it can, or if PEFT has no such field."""
    if field not in _read_config_fields(method):
        return None
    if field in NEVER_READ.get(method, ()):
        return f"PEFT does not use it in {method}"
    return NOT_OFFERED.get(field)


def get_extra_peft_fields(lora: Any) -> tuple[str, ...]:
    """Fields of PEFT's config that were set in addition to those of the method's dataclass."""
    return getattr(lora, "BESIDE", ())


def get_accepted_fields(method: str) -> dict[str, Any]:
    """Field → type, of all fields of PEFT's config of a method that may be set; empty if PEFT is missing or has no such method."""
    return {
        name: NARROWER.get((method, name), kind)
        for name, kind in _read_config_fields(method).items()
        if not explain_unsupported(method, name)
    }


def list_config_fields(method: str) -> list[str]:
    """All fields of PEFT's config of a method; empty if PEFT is missing or has no such method."""
    return list(_read_config_fields(method))


@cache
def extend_spec_class(owner: type, method: str, names: tuple[str, ...]) -> type:
    """A subclass of a method's dataclass with the PEFT fields `names` added."""
    types = get_accepted_fields(method)
    added = {"__annotations__": {name: types[name] for name in names}, "BESIDE": names}
    inherited = {"__module__": owner.__module__, "__doc__": owner.__doc__}
    return dataclass(config=STRICT)(type(owner.__name__, (owner,), added | inherited))


@cache
def _read_config_fields(method: str) -> dict[str, Any]:
    """Field → type of PEFT's config of a method: found by its call `register_peft_method(name=…, config_cls=…)`."""
    module = f"peft.tuners.{method}"
    for node in ast.walk(parse_module(module)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_peft_method":
            arguments = {keyword.arg: keyword.value for keyword in node.keywords}
            if getattr(arguments["name"], "value", "") == method:
                return read_fields(module, getattr(arguments["config_cls"], "id", ""))
    return {}
