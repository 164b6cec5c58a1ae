"""Runs side by side: config differences, metrics, costs, versions, and the command of each."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Any

from peftrun.artifacts import adapter_folder, hub_adapters, hub_download
from peftrun.config import migrations
from peftrun.errors import ConfigError
from peftrun.formatting import align_rows, format_bytes, format_duration
from peftrun.results.catalog import index, scan, table
from peftrun.results.catalog.columns import format_table_value
from peftrun.results.catalog.index import IndexedRun

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_RUNS = len(LETTERS)
WHAT = ("status", "action", "task", "base", "fingerprint", "method", "rank", "date", "seed", "sweep", "template")
COST = ("size", "trainable", "parameters", "steps", "tokens", "seconds")
SHORTEST, LONGEST = 14, 44  # characters of a cell on a terminal
Values = dict[str, list[Any]]


@dataclass(frozen=True)
class Comparison:
    """Values of several runs, each list in the order of `runs`.

    Attributes:
        what: column → values that identify the runs, such as task and base model.
        config: full key → values, of keys that differ; None also where a run has no such key.
        metrics: name → [before, after] of each run.
        cost: column → sizes (bytes), parameter counts, steps and seconds.
        versions: package → versions, of packages that differ.
    """

    runs: list[IndexedRun]
    what: Values
    config: Values
    metrics: Values
    cost: Values
    versions: Values

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable values; non-finite numbers are null."""
        values = {
            "runs": [run.facts["run"] for run in self.runs],
            "about": self.what,
            "config": self.config,
            "metrics": self.metrics,
            "cost": self.cost,
            "versions": self.versions,
            "commands": [run.facts.get("command") for run in self.runs],
        }
        serializable: dict[str, Any] = table.replace_nonfinite(values)
        return serializable


def load_named_runs(paths: Sequence[str], key: str = "action.runs") -> list[IndexedRun]:
    """The runs in these folders, or the adapters in them or on the Hub.

    Raises: ConfigError: a folder is no run and holds no adapter; fewer than two; too many. AdapterError: one on the Hub cannot be downloaded.
    """
    if len({scan.make_absolute(path) for path in paths}) < 2:
        raise ConfigError(f"{key}: two runs or more are compared; type runs=[outputs/train/RUN, outputs/train/RUN2]")
    if len(paths) > MAX_RUNS:
        raise ConfigError(f"{key}: at most {MAX_RUNS} runs are compared at once; name fewer")
    loaded = [(path, index.load_run(_locate_run(path))) for path in dict.fromkeys(paths)]
    missing = [path for path, run in loaded if run is None]
    if missing:
        raise ConfigError(
            *(
                f"{key}: {path}: is no run folder and holds no adapter; `peftrun action=list` names them"
                for path in missing
            )
        )
    return check_readable([run for _, run in loaded if run], key)


def _locate_run(path: str) -> str:
    if hub_adapters.parse_hub_adapter(path) is None:
        return scan.make_absolute(path)
    return str(adapter_folder.resolve_adapter(hub_download.pin_adapter(path)).folder)


def check_readable(runs: list[IndexedRun], key: str) -> list[IndexedRun]:
    """The same runs. Raises: ConfigError: the record of one is unreadable."""
    unreadable = [run for run in runs if run.facts.get("status") == "unreadable"]
    if unreadable:
        raise ConfigError(
            *(f"{key}: {run.facts['run']}: its record is unreadable; leave this run out" for run in unreadable)
        )
    return runs


def compare_runs(runs: Sequence[IndexedRun]) -> Comparison:
    """The comparison of these runs."""
    facts = [run.facts for run in runs]
    versions = _list_unique(key for row in facts for key in row if key.startswith("versions."))
    config_keys = _list_unique(key for run in runs for key in run.config)
    # A run that was not evaluated before training has the leaf `metrics.before` = {}.
    keys = [key for row in facts for key, value in row.items() if key.startswith("metrics.") and value != {}]
    names = _list_unique(key.removeprefix("metrics.").removeprefix("after.").removeprefix("before.") for key in keys)
    metrics = {
        name: [
            # Actions other than train store their metrics without before and after.
            [row.get(f"metrics.before.{name}"), row.get(f"metrics.after.{name}", row.get(f"metrics.{name}"))]
            for row in facts
        ]
        for name in names
    }
    return Comparison(
        list(runs),
        {name: [row.get(name) for row in facts] for name in WHAT if any(row.get(name) is not None for row in facts)},
        _select_differing({key: [_get_value(run.config, key) for run in runs] for key in config_keys}),
        metrics,
        {name: [row.get(name) for row in facts] for name in COST if any(row.get(name) is not None for row in facts)},
        _select_differing({key.removeprefix("versions."): [row.get(key) for row in facts] for key in versions}),
    )


def _list_unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _get_value(config: dict[str, Any], key: str) -> Any:
    """The value of a key; of one that is newer than the run, what the run did without it."""
    return config[key] if key in config else migrations.get_earlier_default(key, config)


def _select_differing(values: Values) -> Values:
    differing = {}
    for key, (first, *others) in values.items():
        # 1 and 1.0 are the same setting, but Python also holds 1 == True, which is not.
        if any(other != first or isinstance(other, bool) != isinstance(first, bool) for other in others):
            differing[key] = [first, *others]
    return differing


def format_comparison(comparison: Comparison) -> Iterator[str]:
    """Lines of a table with one column per run, headed by its letter."""
    letters = LETTERS[: len(comparison.runs)]
    yield from align_rows(
        [(letter, str(run.facts["run"])) for letter, run in zip(letters, comparison.runs, strict=True)]
    )
    sections = build_sections(comparison)
    width = None  # characters that a cell may take; no limit in a pipe
    if sys.stdout.isatty():
        key_width = max((len(key) for section in sections.values() for key in section), default=0)
        width = (get_terminal_size().columns - key_width - 4) // len(letters) - 2
        width = max(SHORTEST, min(LONGEST, width))
    rows = [("", *letters)]
    for title, section in sections.items():
        rows += [("", *[""] * len(letters)), (title, *[""] * len(letters))]
        rows += [
            (
                f"  {key}",
                *(value if width is None or len(value) <= width else f"{value[: width - 1]}…" for value in values),
            )
            for key, values in section.items()
        ]
    yield from ("", *align_rows(rows))
    unknown = [letter for letter, run in zip(letters, comparison.runs, strict=True) if not run.config]
    if unknown:
        yield from (
            "",
            f"the config is not known of {', '.join(unknown)}; `peftrun action=diff` compares adapters themselves",
        )
    elif not comparison.config:
        yield from ("", "nothing differs between their configs")
    yield from ("", "commands")
    yield from (
        f"  {letter}  {run.facts.get('command') or '-'}" for letter, run in zip(letters, comparison.runs, strict=True)
    )


def build_sections(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """Title → name → one text per run; empty sections are left out."""
    sections = {
        "what it is": {key: [*map(format_table_value, values)] for key, values in comparison.what.items()},
        "config": {key: [*map(format_table_value, values)] for key, values in comparison.config.items()},
        "measured": {
            name: [" → ".join(map(table.format_metric, pair if pair[0] is not None else pair[1:])) for pair in pairs]
            for name, pairs in comparison.metrics.items()
        },
        "cost": {
            ("time" if key == "seconds" else key): [_format_cost(key, value) for value in values]
            for key, values in comparison.cost.items()
        },
        "versions": {key: [*map(format_table_value, values)] for key, values in comparison.versions.items()},
    }
    return {title: section for title, section in sections.items() if section}


def _format_cost(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "size":
        return format_bytes(value)
    if name == "seconds":
        return format_duration(value)
    return f"{value:,}" if isinstance(value, int) else format_table_value(value)
