"""Columns of the catalog: their names, the short forms that may be typed, and values as text."""

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from peftrun.config import migrations
from peftrun.config.values import report_upgrades
from peftrun.errors import ConfigError
from peftrun.results.catalog.index import IndexedRun

FIXED = {  # name → description
    "run": "run folder, relative to the working directory",
    "action": "train, save, merge, …; null: an adapter outside a run",
    "status": "completed, running, dead, failed, stopped; unreadable, rejected",
    "date": "start time, in this machine's time zone",
    "task": "chosen option of group task, else task.type",
    "kind": "causal_lm, seq_cls, …",
    "base": "name of the base model",
    "fingerprint": "of the base model's weights, first 12 digits",
    "method": "chosen option of group lora, else the method",
    "rank": "lora.r, or r in the adapter's config",
    "metric": "name of the metric in `before` and `after`",
    "before": "that metric before training",
    "after": "that metric after training, or as evaluated",
    "objective": "value that a sweep minimizes",
    "size": "bytes of the safetensors files written",
    "trainable": "number of trained parameters",
    "parameters": "number of parameters of the model",
    "steps": "optimizer steps; for a running run, those so far",
    "seconds": "from start to end",
    "tokens": "number of tokens trained on",
    "seed": "",
    "sweep": "folder of the sweep, for a cell",
    "template": "name of the team template",
    "adapter": "folder of the adapter written",
    "of": "input adapters",
    "parents": "adapters that training continued, the last one first",
    "device": "device the run used",
    "error": "error message of a failed run",
    "started": "start time as recorded (UTC)",
    "command": "command line of the run",
}
HIDDEN = ("pid", "host")
MEASURED = (  # metrics of peftrun; valid columns even if no run has measured them yet
    "loss", "perplexity", "exact_match", "token_accuracy", "accuracy", "macro_f1", "precision", "recall", "f1", "preference_accuracy",
    "likelihood_accuracy", "margin", "desirable_log_ratio", "undesirable_log_ratio", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l",
)  # fmt: skip
GROUPS = ("metrics.after.", "metrics.", "metrics.before.")  # where a short name is looked up; the first match wins

Value = Callable[[IndexedRun], Any]


class Columns:
    """All columns of a set of runs. `with_config`: their configs were read too, so config keys are columns."""

    def __init__(self, runs: Iterable[IndexedRun], with_config: bool) -> None:
        facts: set[str] = {*FIXED}
        config: set[str] = set()
        for run in runs:
            facts |= run.facts.keys()
            config |= run.config.keys()
        self.facts, self.config, self.with_config = facts - {*HIDDEN}, config, with_config

    def has_column(self, name: str) -> bool:
        """Whether the column exists without reading the runs' configs."""
        return bool(self._find_fact_columns(name)) or _is_measured(name)

    def make_reader(self, name: str, key: str = "action.where") -> Value:
        """Reader of a column's value, None where a run has none. The last part of a config key is enough if it is unique.

        Raises: ConfigError: there is no such column; the message names the nearest.
        """
        names = self._find_fact_columns(name)
        if names:
            return lambda run: next((run.facts[column] for column in names if run.facts.get(column) is not None), None)
        if _is_measured(name):
            return lambda run: None
        if name in self.config:
            return lambda run: run.config.get(name)
        matches = sorted(config_key for config_key in self.config if config_key.endswith(f".{name}"))
        if len(matches) == 1:
            return lambda run: run.config.get(matches[0])
        if not matches and (old_name := _find_old_key(name)):
            new_name, renamed = migrations.rename_key(old_name)
            report_upgrades(map(migrations.format_renamed_key, renamed))
            return self.make_reader(new_name, key)
        if matches:
            raise ConfigError(f"{key}: {name} is the end of several columns: {', '.join(matches)}; type one in full")
        columns = [*self.facts, *self.config, *MEASURED]
        short_names = [column.rpartition(".")[2] for column in columns]
        nearest = get_close_matches(name, [*columns, *short_names], n=1, cutoff=0.6)
        advice = "columns are those of action=list format=json, and every key of the configuration"
        if nearest:
            advice = f"did you mean {nearest[0]}?"
        raise ConfigError(f"{key}: there is no column {name}; {advice}")

    def list_names(self) -> list[str]:
        """All column names: the fixed ones, metrics and versions, then config keys."""
        return [*FIXED, *sorted(self.facts - FIXED.keys()), *sorted(self.config - self.facts)]

    def _find_fact_columns(self, name: str) -> list[str]:
        if name in self.facts:
            return [name]
        return [f"{group}{name}" for group in GROUPS if f"{group}{name}" in self.facts]


def _find_old_key(name: str) -> str | None:
    """The renamed key that is meant: in full, or the only one with this end."""
    matches = [old for old in migrations.RENAMED if f".{old}".endswith(f".{name}") and "*" not in old]
    return name if migrations.rename_key(name)[1] else matches[0] if len(matches) == 1 else None


def _is_measured(name: str) -> bool:
    group, _, metric = name.rpartition(".")
    return metric in MEASURED and (not group or f"{group}." in GROUPS)


def format_table_value(value: Any) -> str:
    """A value as one line of text, for table cells and glob matching."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return f"[{','.join(map(format_table_value, value))}]"
    return " ".join(str(value).split())


def make_sort_key(value: Any) -> tuple[int, Any]:
    """Sort key for values of mixed types in one column: numbers, then texts, then missing values and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (2, 0)
    if isinstance(value, int | float):
        return (0, value)
    return (1, format_table_value(value).lower())
