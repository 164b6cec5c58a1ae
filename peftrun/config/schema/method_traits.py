"""What peftrun's rules need to know of PEFT's methods and of LoRA's initializations: a row each, read everywhere. Light.

`tests/test_peft_fields.py` holds the rows against PEFT.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

MODULE_SETS = (  # keys of group `lora` whose lists name modules or layers, in any order
    "target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters", "layers_to_transform",
)  # fmt: skip
TASK_NUMBER = "needs the number of its task with each row"


@dataclass(frozen=True)
class MethodTraits:
    """A method of PEFT; by default one that changes weights of linear layers, and is complete in its file.

    Attributes:
        virtual_tokens: it prepends them to each text, so a row must be one text.
        merges: its change is one of weights.
        streams: its layers can be made without the base model's weights, and it is on layers alone: it merges and loads layer by layer.
        shards: it can be trained where the weights of the base model are spread over processes.
        adds_to_loss: the model adds a penalty to its own loss.
        any_module: it adapts other modules than linear layers and embeddings.
        inner_patterns: its patterns match any part of a module's name, not its end.
        loads_beside: PEFT can load two of them on one base model.
        missing_input: what it needs besides the text, which peftrun does not give.
        not_continued: why an adapter of it cannot be trained further.
    """

    virtual_tokens: bool = False
    merges: bool = True
    streams: bool = True
    shards: bool = True
    adds_to_loss: bool = False
    any_module: bool = False
    inner_patterns: bool = False
    loads_beside: bool = True
    missing_input: str | None = None
    not_continued: str | None = None


PLAIN = MethodTraits()
PROMPT = MethodTraits(virtual_tokens=True, merges=False, streams=False)
METHODS = {  # by `lora.method`; of all others PLAIN is true
    "adalora": MethodTraits(
        streams=False,
        shards=False,
        adds_to_loss=True,
        not_continued="the scores by which it removes rank are not in its file",
    ),
    "adamss": MethodTraits(streams=False),
    "adaption_prompt": MethodTraits(merges=False, streams=False),
    "cartridge": PROMPT,
    "cpt": PROMPT,
    "frod": MethodTraits(streams=False),
    "ln_tuning": MethodTraits(any_module=True),
    "multitask_prompt_tuning": replace(PROMPT, missing_input=TASK_NUMBER),
    "osf": MethodTraits(inner_patterns=True),
    "p_tuning": replace(PROMPT, not_continued="its file has the virtual tokens, not the network that computed them"),
    "poly": MethodTraits(missing_input=TASK_NUMBER),
    "prefix_tuning": PROMPT,
    "prompt_tuning": PROMPT,
    "shira": MethodTraits(streams=False),
    "trainable_tokens": MethodTraits(any_module=True, loads_beside=False),
    "unilora": MethodTraits(streams=False),
    "xlora": MethodTraits(missing_input="needs other adapters, each under a path of its own"),
}


def get_method_traits(method: Any) -> MethodTraits:
    """The row of a method: `lora.method`, or the `peft_type` of a file or of PEFT's config."""
    return METHODS.get(str(getattr(method, "value", method)).lower(), PLAIN)


@dataclass(frozen=True)
class InitTraits:
    """A value of `init_lora_weights`; by default, as any that is not in the table, one that changes the base model's weights.

    Attributes:
        keeps_base: it leaves the base model's weights as they are.
        plain: it draws A and B, and nothing else differs from LoRA.
        converted: peftrun converts its adapters to plain LoRA when it saves them.
        repeatable: it follows from the base model's weights alone, so PEFT repeats it when it loads the adapter.
        calibrated: it reads training rows.
        on_conv1d: it reads a Conv1D's weight (in, out) as such; otherwise PEFT 0.21 transposes the factors.
    """

    keeps_base: bool = False
    plain: bool = False
    converted: bool = False
    repeatable: bool = False
    calibrated: bool = False
    on_conv1d: bool = True


DRAWN = InitTraits(keeps_base=True, plain=True)
INITS = {
    "gaussian": DRAWN,
    "orthogonal": DRAWN,
    "mica": InitTraits(keeps_base=True),
    "eva": InitTraits(keeps_base=True, calibrated=True),
    "corda": InitTraits(converted=True, calibrated=True, on_conv1d=False),
    "lora_ga": InitTraits(converted=True, calibrated=True, on_conv1d=False),
    "olora": InitTraits(converted=True, repeatable=True, on_conv1d=False),
    "pissa": InitTraits(converted=True, repeatable=True),
    "pissa_niter": InitTraits(converted=True),  # pissa_niter_16
    "loftq": InitTraits(),
}
PLAIN_INITS = (True, False, *(name for name, traits in INITS.items() if traits.plain))


def get_init_traits(init: Any) -> InitTraits:
    """The row of a value of `init_lora_weights`."""
    return INITS.get(re.sub(r"_\d+$", "", init.lower()), InitTraits()) if isinstance(init, str) else DRAWN
