"""Checks that everything a config names exists in the model: PEFT ignores a name without a match if another name has one."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from peftrun.config.schema.method_traits import get_method_traits
from peftrun.errors import ConfigError

TARGETABLE_LAYERS = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")
ALL_LINEAR = ("target_modules", "all-linear")  # in this key PEFT's shorthand, not a regular expression
TOKEN_FIELDS = ("trainable_token_indices", "token_indices")


def check_target_modules(model: Any, lora: Any) -> None:
    """Raises: ConfigError: a name, pattern, layer index or token id of the config is not in the model; one line each."""
    linear = [name for name, module in model.named_modules() if isinstance(module, TARGETABLE_LAYERS)]
    modules = [name for name, _ in model.named_modules() if name]
    traits = get_method_traits(lora.method)
    candidates = {
        "target_modules": modules if traits.any_module else linear,
        "exclude_modules": modules,
        "modules_to_save": modules,
        "feedforward_modules": linear,
        "target_parameters": [name for name, _ in model.named_parameters()],
    }
    problems = [
        _describe_unmatched(f"lora.{key}", entry, names)
        for key, names in candidates.items()
        for entry in _find_unmatched(getattr(lora, key, None), names)
        if (key, entry) != ALL_LINEAR
    ]
    for key in PATTERN_FIELDS:
        problems += _check_patterns(f"lora.{key}", getattr(lora, key, None) or {}, linear, traits.inner_patterns)
    problems += _check_indices(model, lora)
    if problems:
        raise ConfigError(*problems)


def _check_patterns(key: str, values: dict[str, int], names: list[str], anywhere: bool) -> list[str]:
    # As PEFT reads them: regular expressions for the end of a module's name, or with OSF for any part of it.
    expressions = {pattern: pattern if anywhere else rf"^(.*\.)?({pattern})$" for pattern in values}
    matches = {
        pattern: {name for name in names if re.search(expression, name)} for pattern, expression in expressions.items()
    }
    unmatched = [_describe_unmatched(key, pattern, names) for pattern, matched in matches.items() if not matched]
    # PEFT uses the first pattern that matches, and sorts them when it saves, so another one may be first at loading.
    return unmatched + [
        f"{key}: {first} ({values[first]}) and {second} ({values[second]}) both match {min(matches[first] & matches[second])}, and which of them "
        "counts may change when the adapter is saved; write patterns that do not overlap"
        for first, second in combinations(values, 2)
        if values[first] != values[second] and matches[first] & matches[second]
    ]


def _check_indices(model: Any, lora: Any) -> list[str]:
    layers, indices = model.config.get_text_config().num_hidden_layers, getattr(lora, "layers_to_transform", None)
    problems = [
        f"lora.layers_to_transform={index}: this model's layers are 0 to {layers - 1}; type one of them"
        for index in ([indices] if isinstance(indices, int) else indices or [])
        if not 0 <= index < layers
    ]
    size = model.get_input_embeddings().weight.shape[0]  # (vocabulary, hidden)
    for key in TOKEN_FIELDS:
        tokens = getattr(lora, key, None) or []  # a list, or module → list
        problems += [
            f"lora.{key}={token}: this model's token ids are 0 to {size - 1}; type some of them"
            for token in (tokens if isinstance(tokens, list) else [token for ids in tokens.values() for token in ids])
            if not 0 <= token < size
        ]
    return problems


def _find_unmatched(entries: Iterable[str] | str | None, names: list[str]) -> list[str]:
    """Entries that PEFT would match with no module.

    PEFT compares the entries of a list with whole names and with their ends after a dot; a string is one regular expression.
    """
    if isinstance(entries, str):
        return [] if any(re.fullmatch(entries, name) for name in names) else [entries]
    return [entry for entry in entries or [] if not any(name == entry or name.endswith(f".{entry}") for name in names)]


def _describe_unmatched(key: str, entry: str, names: list[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
    closest = get_close_matches(entry, ends, n=1, cutoff=0.0)  # a cutoff of 0 always finds one
    return f"{key}={entry}: matches no module of this model; modules: {', '.join(ends)}; type {key}=[{closest[0]}]"
