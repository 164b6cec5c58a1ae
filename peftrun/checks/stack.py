"""Rules of action.stack=true: a fresh adapter on top of a saved one. Light."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.config.schema.method_traits import get_init_traits

Lines = Iterator[str]
CONTINUE_ADVICE = "omit action.stack to train that adapter further"


def check_stack(action: Any, lora: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Lines:
    """There is an adapter to train on top of, and both are low-rank changes of weights, which can be added."""
    if not getattr(action, "stack", False):
        return
    if not adapter:
        yield "action.stack=true: trains a new adapter on top of another; name it: type adapter=RUN_FOLDER, or action.stack=false"
    for parent in adapters.values():
        if setting := adapter_rules.find_unsummable_setting(parent.config):
            yield (
                f"{parent.option}: has {setting}, so nothing can be stacked on it; {CONTINUE_ADVICE}, or merge it (action=merge) and train on "
                "the merged model"
            )
    yield from _check_lora(lora)


def _check_lora(lora: Any) -> Lines:
    if lora.method != "lora":
        yield f"lora.method={lora.method}: action.stack=true adds a LoRA to a LoRA; type lora=lora, or {CONTINUE_ADVICE}"
        return
    if get_init_traits(lora.init_lora_weights).calibrated:
        yield f"lora.init_lora_weights={lora.init_lora_weights}: looks at the base model without the adapter below; type lora.init_lora_weights=true"
        return
    settings = {field.name: getattr(lora, field.name) for field in dataclasses.fields(lora)}
    if setting := adapter_rules.find_unsummable_setting(settings | {"peft_type": "LORA"}):
        yield f"lora.{setting}: cannot be added to the adapter below, which action.stack=true does; omit it, or {CONTINUE_ADVICE}"
    if lora.lora_fa:
        yield "lora.lora_fa=true: PEFT's optimizer moves every adapter of the model, also the one below; type lora.lora_fa=false"
