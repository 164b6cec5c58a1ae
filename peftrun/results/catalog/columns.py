"""Columns of the catalogue: their names, how short they may be typed, and values as text."""

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from peftrun.errors import ConfigError
from peftrun.results.catalog.index import IndexedRun

FIXED = {  # name → what it says
    "run": "its folder, as it can be typed from here",
    "action": "train, save, merge, …; null: an adapter outside a run",
    "status": "completed, running, dead, failed, stopped; unreadable, rejected",
    "date": "when it began, by this machine's clock",
    "task": "the option that was chosen, else the kind",
    "kind": "causal_lm, seq_cls, …",
    "base": "name of the base model",
    "fingerprint": "of the base's weights, its first twelve letters",
    "method": "the option of group lora that was chosen, else the method",
    "rank": "lora.r, or what the adapter says",
    "metric": "name of the figure in `before` and `after`",
    "before": "that figure before training",
    "after": "and after it, or as measured",
    "objective": "what a sweep minimises",
    "size": "bytes of the safetensors that were made",
    "trainable": "parameters that were trained",
    "parameters": "all of the model's",
    "steps": "optimiser steps; of a running run, those so far",
    "seconds": "from start to end",
    "tokens": "that were trained on",
    "seed": "",
    "sweep": "folder of the sweep that it is a cell of",
    "template": "of a team",
    "adapter": "folder of the adapter that was made",
    "of": "adapters that were given",
    "device": "as chosen",
    "error": "why it failed",
    "started": "the date as the record has it",
    "command": "what to type to get it",
}
HIDDEN = ("pid", "host")
MEASURED = (  # what peftrun measures: columns also where no run has measured it yet
    "loss", "perplexity", "exact_match", "token_accuracy", "accuracy", "macro_f1", "precision", "recall", "f1", "preference_accuracy",
    "likelihood_accuracy", "margin", "desirable_log_ratio", "undesirable_log_ratio", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l",
)  # fmt: skip
GROUPS = ("metrics.after.", "metrics.", "metrics.before.")  # in which a short name is looked for, the first wins

Value = Callable[[IndexedRun], Any]


class Columns:
    """Every column that some runs have. `with_config`: their configs were read too."""

    def __init__(self, runs: Iterable[IndexedRun], with_config: bool) -> None:
        facts: set[str] = {*FIXED}
        config: set[str] = set()
        for run in runs:
            facts |= run.facts.keys()
            config |= run.config.keys()
        self.facts, self.config, self.with_config = facts - {*HIDDEN}, config, with_config

    def has_column(self, name: str) -> bool:
        """Whether the facts alone tell it."""
        return bool(self._find_fact_columns(name)) or _is_measured(name)

    def value(self, name: str, key: str = "action.where") -> Value:
        """What tells the value of a column, None where a run has none; a last part alone will do, if it is one key's.

        Raises: ConfigError: there is no such column, with the nearest that is.
        """
        names = self._find_fact_columns(name)
        if names:
            return lambda run: next((run.facts[one] for one in names if run.facts.get(one) is not None), None)
        if _is_measured(name):
            return lambda run: None
        full = self._find_config_key(name, key)
        return lambda run: run.config.get(full)

    def names(self) -> list[str]:
        """All of them: the fixed ones, metrics, versions, then keys of the configuration."""
        own = [*FIXED, *sorted(self.facts - FIXED.keys())]
        return [*own, *sorted(self.config - self.facts)]

    def _find_fact_columns(self, name: str) -> list[str]:
        if name in self.facts:
            return [name]
        return [f"{group}{name}" for group in GROUPS if f"{group}{name}" in self.facts]

    def _find_config_key(self, name: str, key: str) -> str:
        if name in self.config:
            return name
        found = sorted(one for one in self.config if one.endswith(f".{name}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{key}: {name} is the end of several columns: {', '.join(found)}; type one in full")
        raise ConfigError(f"{key}: there is no column {name}; {self._suggest_column(name)}")

    def _suggest_column(self, name: str) -> str:
        known = [*self.facts, *self.config, *MEASURED]
        short = {one.rpartition(".")[2]: one for one in known}
        near = get_close_matches(name, [*known, *short], n=1, cutoff=0.6)
        fallback = "columns are those of action=list format=json, and every key of the configuration"
        return f"did you mean {near[0]}?" if near else fallback


def _is_measured(name: str) -> bool:
    group, _, own = name.rpartition(".")
    return own in MEASURED and (not group or f"{group}." in GROUPS)


def format_value(value: Any) -> str:
    """A value in a table or beside a glob, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return " ".join(str(value).split())


def make_sort_key(value: Any) -> tuple[int, Any]:
    """What values of one column are sorted by, whatever their types: numbers, then texts; nothing is a group of its own, and so is nan."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (2, 0)
    if isinstance(value, int | float):
        return (0, value)
    return (1, format_value(value).lower())
