"""Runs side by side: what differs between their configs, what came out, what it took, and how each is typed."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Any

from peftrun.errors import ConfigError
from peftrun.formatting import align_rows, format_rough_duration
from peftrun.results.catalog import index, scan, table
from peftrun.results.catalog.columns import format_value
from peftrun.results.catalog.index import IndexedRun

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_RUNS = len(LETTERS)
WHAT = ("status", "action", "task", "base", "fingerprint", "method", "rank", "date", "seed", "sweep", "template")
COST = ("size", "trainable", "parameters", "steps", "tokens", "seconds")
SHORTEST, LONGEST = 14, 44  # letters of a value on a terminal
Values = dict[str, list[Any]]


@dataclass(frozen=True)
class Comparison:
    """What is side by side, each list in the order of `runs`.

    Attributes:
        config: full key → values, of keys that differ; None also where a run has no such key.
        metrics: name → [before, after] of each run.
        versions: of packages that differ.
    """

    runs: list[IndexedRun]
    what: Values
    config: Values
    metrics: Values
    cost: Values
    versions: Values

    def as_dict(self) -> dict[str, Any]:
        """For another program."""
        found = {
            "runs": [run.facts["run"] for run in self.runs],
            "about": self.what,
            "config": self.config,
            "metrics": self.metrics,
            "cost": self.cost,
            "versions": self.versions,
            "commands": [run.facts.get("command") for run in self.runs],
        }
        plain: dict[str, Any] = table.replace_nonfinite(found)
        return plain


def load_named_runs(paths: Sequence[str], key: str = "action.runs") -> list[IndexedRun]:
    """The runs in these folders. Raises: ConfigError: one is no run and holds no adapter; fewer than two; too many."""
    if len({scan.make_absolute(path) for path in paths}) < 2:
        raise ConfigError(f"{key}: two runs or more are compared; type runs=[outputs/train/RUN, outputs/train/RUN2]")
    if len(paths) > MAX_RUNS:
        raise ConfigError(f"{key}: at most {MAX_RUNS} runs stand side by side; name fewer")
    found = [(path, index.load_run(scan.make_absolute(path))) for path in dict.fromkeys(paths)]
    missing = [path for path, run in found if run is None]
    if missing:
        raise ConfigError(
            *(
                f"{key}: {path}: is no run folder and holds no adapter; `peftrun action=list` names them"
                for path in missing
            )
        )
    return check_readable([run for _, run in found if run], key)


def check_readable(runs: list[IndexedRun], key: str) -> list[IndexedRun]:
    """The same. Raises: ConfigError: the record of one is torn."""
    torn = [run for run in runs if run.facts.get("status") == "unreadable"]
    if torn:
        raise ConfigError(
            *(f"{key}: {run.facts['run']}: its record is torn, so nothing is known of it; leave it out" for run in torn)
        )
    return runs


def compare_runs(runs: Sequence[IndexedRun]) -> Comparison:
    """What is side by side."""
    facts = [run.facts for run in runs]
    versions = _list_unique(key for one in facts for key in one if key.startswith("versions."))
    config = _list_unique(key for run in runs for key in run.config)
    return Comparison(
        list(runs),
        {name: [one.get(name) for one in facts] for name in WHAT if any(one.get(name) is not None for one in facts)},
        _select_differing({key: [run.config.get(key) for run in runs] for key in config}),
        _collect_metrics(facts),
        {name: [one.get(name) for one in facts] for name in COST if any(one.get(name) is not None for one in facts)},
        _select_differing({key.removeprefix("versions."): [one.get(key) for one in facts] for key in versions}),
    )


def _list_unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _select_differing(values: Values) -> Values:
    return {key: found for key, found in values.items() if any(not _is_same(one, found[0]) for one in found[1:])}


def _is_same(one: Any, other: Any) -> bool:
    """1 is 1.0 to a run, and not true."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _collect_metrics(facts: Sequence[dict[str, Any]]) -> Values:
    every = [(key, value) for one in facts for key, value in one.items() if key.startswith("metrics.")]
    keys = _list_unique(key.removeprefix("metrics.") for key, value in every if value != {})  # not measured before: {}
    names = _list_unique(key.removeprefix("after.").removeprefix("before.") for key in keys)
    return {name: [_get_before_after(one, name) for one in facts] for name in names}


def _get_before_after(facts: dict[str, Any], name: str) -> list[Any]:
    after = facts.get(f"metrics.after.{name}", facts.get(f"metrics.{name}"))
    return [facts.get(f"metrics.before.{name}"), after]


def format_comparison(found: Comparison) -> Iterator[str]:
    """A table: a column a run, under its letter."""
    letters = LETTERS[: len(found.runs)]
    yield from align_rows([(letter, str(run.facts["run"])) for letter, run in zip(letters, found.runs, strict=True)])
    parts = build_sections(found)
    room = _compute_cell_width(max((len(key) for part in parts.values() for key in part), default=0), len(letters))
    rows = [("", *letters)]
    for title, part in parts.items():
        rows += [("", *[""] * len(letters)), (title, *[""] * len(letters))]
        rows += [(f"  {key}", *(_truncate_text(value, room) for value in values)) for key, values in part.items()]
    yield from ("", *align_rows(rows))
    if not found.config:
        yield from ("", "nothing differs between their configs")
    yield from ("", "commands")
    yield from (
        f"  {letter}  {run.facts.get('command') or '-'}" for letter, run in zip(letters, found.runs, strict=True)
    )


def build_sections(found: Comparison) -> dict[str, dict[str, list[str]]]:
    """Title → name → a text for each run; sections that say nothing are left out."""
    every = {
        "what it is": {key: [*map(format_value, values)] for key, values in found.what.items()},
        "config": {key: [*map(format_value, values)] for key, values in found.config.items()},
        "measured": {key: [*map(_format_change, values)] for key, values in found.metrics.items()},
        "cost": {
            ("time" if key == "seconds" else key): [_format_cost(key, value) for value in values]
            for key, values in found.cost.items()
        },
        "versions": {key: [*map(format_value, values)] for key, values in found.versions.items()},
    }
    return {title: part for title, part in every.items() if part}


def _format_change(pair: Sequence[Any]) -> str:
    before, after = pair
    return (
        table.format_metric(after)
        if before is None
        else f"{table.format_metric(before)} → {table.format_metric(after)}"
    )


def _format_cost(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "size":
        return table.format_size_cell(value)
    return (
        format_rough_duration(value)
        if name == "seconds"
        else f"{value:,}"
        if isinstance(value, int)
        else format_value(value)
    )


def _compute_cell_width(keys: int, runs: int) -> int | None:
    """Letters that a value may take on a terminal; None: as many as it has."""
    if not sys.stdout.isatty():
        return None
    return max(SHORTEST, min(LONGEST, (get_terminal_size().columns - keys - 4) // runs - 2))


def _truncate_text(value: str, room: int | None) -> str:
    return value if room is None or len(value) <= room else f"{value[: room - 1]}…"
