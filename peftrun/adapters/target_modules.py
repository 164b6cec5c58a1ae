"""Whether what a config names is in the model: PEFT passes over a name that matches nothing if another matches."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from peftrun.errors import ConfigError

TARGETABLE_LAYERS = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")
ALL_LINEAR = ("target_modules", "all-linear")  # no expression in this key; PEFT gives the word a meaning of its own
ANY_MODULE = ("ln_tuning", "trainable_tokens")  # methods whose targets are no linear layers


def check_target_modules(model: Any, lora: Any) -> None:
    """Raises: ConfigError: a name, pattern, layer or token number of the config is not in the model; one line each."""
    linear = [name for name, module in model.named_modules() if isinstance(module, TARGETABLE_LAYERS)]
    everything = [name for name, _ in model.named_modules() if name]
    asked = {
        "target_modules": everything if lora.method in ANY_MODULE else linear,
        "exclude_modules": everything,
        "modules_to_save": everything,
        "feedforward_modules": linear,
        "target_parameters": [name for name, _ in model.named_parameters()],
    }
    problems = [
        _describe_unmatched(f"lora.{key}", entry, known)
        for key, known in asked.items()
        for entry in _find_unmatched(getattr(lora, key, None), known)
        if (key, entry) != ALL_LINEAR
    ]
    problems += [
        line
        for key in PATTERN_FIELDS
        for line in _check_patterns(
            f"lora.{key}", getattr(lora, key, None) or {}, linear, anywhere=lora.method == "osf"
        )
    ]
    problems += _check_layers(model, lora) + _check_tokens(model, lora)
    if problems:
        raise ConfigError(*problems)


def _check_patterns(key: str, pattern: dict[str, int], names: list[str], anywhere: bool) -> list[str]:
    # as PEFT reads the keys of a pattern: a regular expression for the end of a module's name; of OSF's for any part of it
    whole = {one: one if anywhere else rf"^(.*\.)?({one})$" for one in pattern}
    found = {one: {name for name in names if re.search(whole[one], name)} for one in pattern}
    absent = [_describe_unmatched(key, entry, names) for entry, matched in found.items() if not matched]
    return absent + _find_overlaps(key, pattern, found)


def _find_overlaps(key: str, pattern: dict[str, int], found: dict[str, set[str]]) -> list[str]:
    """PEFT lets the first pattern decide, and sorts them when it saves: another one may be first then."""
    return [
        f"{key}: {one} ({pattern[one]}) and {other} ({pattern[other]}) both match {min(found[one] & found[other])}, and which of them "
        "counts may change when the adapter is saved; write patterns that do not overlap"
        for one, other in combinations(pattern, 2)
        if pattern[one] != pattern[other] and found[one] & found[other]
    ]


def _check_layers(model: Any, lora: Any) -> list[str]:
    layers, asked = model.config.get_text_config().num_hidden_layers, getattr(lora, "layers_to_transform", None)
    return [
        f"lora.layers_to_transform={layer}: this model's layers are 0 to {layers - 1}; type one of them"
        for layer in ([asked] if isinstance(asked, int) else asked or [])
        if not 0 <= layer < layers
    ]


def _check_tokens(model: Any, lora: Any) -> list[str]:
    keys = {"trainable_token_indices", "token_indices"}
    found = [(key, getattr(lora, key, None) or []) for key in keys]
    size = model.get_input_embeddings().weight.shape[0]
    return [
        f"lora.{key}={number}: this model's token ids are 0 to {size - 1}; type some of them"
        for key, given in found
        for number in (given if isinstance(given, list) else [one for ids in given.values() for one in ids])
        if not 0 <= number < size
    ]


def _find_unmatched(entries: Iterable[str] | str | None, names: list[str]) -> list[str]:
    """Entries that PEFT would match with no module.

    It compares a list's entries with whole names and with their ends after a dot; a text is one regular expression.
    """
    if isinstance(entries, str):
        return [] if any(re.fullmatch(entries, name) for name in names) else [entries]
    return [entry for entry in entries or [] if not any(name == entry or name.endswith(f".{entry}") for name in names)]


def _describe_unmatched(key: str, entry: str, names: list[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
    near = get_close_matches(entry, ends, n=1, cutoff=0.0)
    return f"{key}={entry}: matches no module of this model; modules: {', '.join(ends)}; type {key}=[{near[0]}]"
