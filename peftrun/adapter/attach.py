"""A fresh adapter on a base."""

import dataclasses
import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from peftrun.errors import ConfigError
from peftrun.model import Base
from peftrun.schema import LoraSpec

TASK_TYPES = {"causal_lm": TaskType.CAUSAL_LM, "seq_cls": TaskType.SEQ_CLS, "token_cls": TaskType.TOKEN_CLS}
HEADS = ("classifier", "score")  # PEFT itself adds these to modules_to_save
LINEAR = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
CHANGES_BASE = ("pissa", "olora")


def attach(base: Base, lora: LoraSpec, seed: int) -> Any:
    """The base wrapped with a fresh adapter named `default`, whose weights depend on `seed` and `lora` alone.

    Raises: ConfigError: a `target_modules` or `modules_to_save` entry matches nothing.
    """
    _check_modules(base.model, lora)
    chosen = {key: value for key, value in dataclasses.asdict(lora).items() if value is not None}
    chosen.pop("method")
    chosen |= _for_head(base, lora)
    kind = TASK_TYPES[base.head.kind if base.head else "causal_lm"]
    config = LoraConfig(**chosen, task_type=kind, base_model_name_or_path=base.name, revision=base.revision)
    set_seed(seed)
    try:
        _check_orthonormal(base.model, lora)
        return get_peft_model(base.model, config)
    except ValueError as error:  # PEFT owns the rules between its own fields
        raise ConfigError(f"lora: {str(error).splitlines()[0]}") from error


def trainable(model: Any) -> tuple[int, int]:
    """Number of trainable parameters, and of all."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, wanted in counts if wanted), sum(n for n, _ in counts)


def changes_base(lora: LoraSpec) -> bool:
    """Whether this initialisation moves part of the base's weights into the adapter."""
    return str(lora.init_lora_weights).startswith(CHANGES_BASE)


def _for_head(base: Base, lora: LoraSpec) -> dict[str, Any]:
    """What a classifier's config says otherwise: its head is saved in full, and `all-linear` means the encoder's layers.

    All that the base's files do not hold is drawn at random wherever the base is loaded, so it travels with the adapter.
    """
    if base.head is None:
        return {}
    changed: dict[str, Any] = {}
    whole = (*HEADS, *base.untrained)
    beside = [name for name in base.untrained if name.split(".")[0] not in HEADS]
    if beside:
        changed["modules_to_save"] = [*(lora.modules_to_save or []), *beside]
    if lora.target_modules == "all-linear":
        linear = [name for name, module in base.model.named_modules() if isinstance(module, LINEAR[::2])]
        changed["target_modules"] = [
            name for name in linear if not f"{name}.".startswith(tuple(f"{one}." for one in whole))
        ]
    return changed


def _check_modules(model: Any, lora: LoraSpec) -> None:
    """Whatever names a module must name one: PEFT passes over a name that matches nothing if another matches."""
    names = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    everything = [name for name, _ in model.named_modules() if name]
    asked = {
        "lora.target_modules": (lora.target_modules, names),
        "lora.exclude_modules": (lora.exclude_modules, everything),
        "lora.modules_to_save": (lora.modules_to_save, everything),
    }
    problems = [
        _no_match(key, entry, known) for key, (wanted, known) in asked.items() for entry in _absent(wanted, known)
    ]
    patterns = {"lora.rank_pattern": lora.rank_pattern, "lora.alpha_pattern": lora.alpha_pattern}
    for key, pattern in patterns.items():
        # as PEFT reads the keys of a pattern: a regular expression for the end of a module's name
        found = {one: {name for name in names if re.match(rf"(.*\.)?({one})$", name)} for one in pattern or {}}
        problems += [_no_match(key, entry, names) for entry, matched in found.items() if not matched]
        problems += _overlaps(key, pattern or {}, found)
    layers = model.config.get_text_config().num_hidden_layers
    for layer in lora.layers_to_transform or []:
        if not 0 <= layer < layers:
            problems.append(
                f"lora.layers_to_transform={layer}: this model's layers are 0 to {layers - 1}; type one of them"
            )
    if problems:
        raise ConfigError(*problems)


def _overlaps(key: str, pattern: dict[str, int], found: dict[str, set[str]]) -> list[str]:
    """PEFT lets the first pattern decide, and sorts them when it saves: another one may be first then."""
    return [
        f"{key}: {one} ({pattern[one]}) and {other} ({pattern[other]}) both match {min(found[one] & found[other])}, and which of them "
        "counts may change when the adapter is saved; write patterns that do not overlap"
        for one, other in combinations(pattern, 2)
        if pattern[one] != pattern[other] and found[one] & found[other]
    ]


def _check_orthonormal(model: Any, lora: LoraSpec) -> None:
    # PEFT 0.21 takes a Conv1D's weight for a Linear's there, and the shapes come out transposed.
    if lora.init_lora_weights == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
        raise ConfigError(
            "lora.init_lora_weights=olora: PEFT cannot start OLoRA on Conv1D layers (GPT-2); type lora=pissa"
        )


def _absent(entries: Iterable[str] | str | None, names: list[str]) -> list[str]:
    """Entries that PEFT would match with no module.

    It compares a list's entries with whole names and with their ends after a dot; a text is one regular expression.
    """
    if isinstance(entries, str):
        found = entries == "all-linear" or any(re.fullmatch(entries, name) for name in names)
        return [] if found else [entries]
    return [entry for entry in entries or [] if not any(name == entry or name.endswith(f".{entry}") for name in names)]


def _no_match(key: str, entry: str, names: list[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
    near = get_close_matches(entry, ends, n=1, cutoff=0.0)
    return f"{key}={entry}: matches no module of this model; modules: {', '.join(ends)}; type {key}=[{near[0]}]"
