"""A fresh adapter on a base."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from peftrun.errors import ConfigError
from peftrun.model import Base
from peftrun.schema import LoraSpec

LINEAR = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
CHANGES_BASE = ("pissa", "olora")


def attach(base: Base, lora: LoraSpec, seed: int) -> Any:
    """The base wrapped with a fresh adapter named `default`, whose weights depend on `seed` and `lora` alone.

    Raises: ConfigError: a `target_modules` or `modules_to_save` entry matches nothing.
    """
    _check_modules(base.model, lora)
    chosen = {key: value for key, value in dataclasses.asdict(lora).items() if value is not None}
    chosen.pop("method")
    config = LoraConfig(
        **chosen, task_type=TaskType.CAUSAL_LM, base_model_name_or_path=base.name, revision=base.revision
    )
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


def _check_modules(model: Any, lora: LoraSpec) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    problems = []
    if isinstance(lora.target_modules, str):
        if lora.target_modules != "all-linear" and not any(re.fullmatch(lora.target_modules, name) for name in names):
            problems.append(_no_match("lora.target_modules", lora.target_modules, names))
    else:
        problems = [_no_match("lora.target_modules", entry, names) for entry in _absent(lora.target_modules, names)]
    everything = [name for name, _ in model.named_modules() if name]
    problems += [
        _no_match("lora.modules_to_save", e, everything) for e in _absent(lora.modules_to_save or [], everything)
    ]
    if problems:
        raise ConfigError(*problems)


def _check_orthonormal(model: Any, lora: LoraSpec) -> None:
    # PEFT 0.21 takes a Conv1D's weight for a Linear's there, and the shapes come out transposed.
    if lora.init_lora_weights == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
        raise ConfigError(
            "lora.init_lora_weights=olora: PEFT cannot start OLoRA on Conv1D layers (GPT-2); type lora=pissa"
        )


def _absent(entries: Iterable[str], names: list[str]) -> list[str]:
    """Entries that PEFT would match with no module: it compares whole names, and ends of names after a dot."""
    return [entry for entry in entries if not any(name == entry or name.endswith(f".{entry}") for name in names)]


def _no_match(key: str, entry: str, names: list[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
    return f"{key}={entry}: matches no module of this model; modules: {', '.join(ends)}"
