"""What is told of a configuration, of a run folder, and of two. Light."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.composition import compose
from peftrun.composition.composer import Compositions
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.search_path import packages
from peftrun.config_tools import minimal_overrides
from peftrun.config_tools import provenance as value_origins
from peftrun.config_tools.provenance import RECORDED, Origins, Source
from peftrun.errors import ConfigError
from peftrun.io import atomic_files

UNCOUNTED = ("resume", "output_dir")  # of an action: where it is written, and how it came about


@dataclass(frozen=True)
class Explanation:
    """A configuration, where it comes from, and how it is typed. `unread`: keys that nothing read when it was run."""

    origins: Origins
    command: str
    unread: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        values = config.flatten(self.origins.values)
        return {
            "keys": [_row(key, values[key], source) for key, source in self.origins.sources.items()],
            "choices": [{"group": one.group, "option": one.option, "by": one.by} for one in self.origins.choices],
            "unread": self.unread,
            "command": self.command,
        }


@dataclass(frozen=True)
class Difference:
    """How the config of one run leads to another's: what differs, the overrides, and the whole command of the other."""

    values: dict[str, tuple[Any, Any]]
    overrides: list[str]
    command: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        rows = [{"key": key, "from": one, "to": other} for key, (one, other) in self.values.items()]
        return {"differences": rows, "overrides": self.overrides, "command": self.command}


def of_typed(overrides: Sequence[str], search_path: Sequence[str]) -> Explanation:
    """That of the config that overrides compose. Raises: ConfigError: they cannot be composed."""
    places = _given(search_path)
    compositions = Compositions(places)
    try:
        origins = value_origins.of(compositions, overrides)
    except compose.REFUSALS as error:
        raise ConfigError(*(compose.explain(overrides, None, places) or [str(error)])) from error
    return Explanation(origins, _command(compositions, places, origins.values, overrides))


def of_run(run: Path) -> Explanation:
    """That of a run folder's config: its values, which today's options may not say any more.

    Raises: ConfigError: it holds keys that no option has.
    """
    values, places = config.read_run(run / CONFIG), _given(run_overrides.search_path(run))
    _refuse_unknown(run, values)
    compositions = Compositions(_there(places))
    overrides = run_overrides.overrides(run) or minimal_overrides.between(compositions, _there(places), values)
    try:
        today = value_origins.of(compositions, [text for text in overrides if not text.startswith("hydra")])
    except (*compose.REFUSALS, ConfigError):
        today = Origins({}, {}, [])
    record = atomic_files.read_json(run / RECORD) if (run / RECORD).is_file() else {}
    origins = replace(today, values=values, sources=_recorded(values, today))
    return Explanation(origins, _command(compositions, _there(places), values, overrides), record.get("unread", []))


def _refuse_unknown(run: Path, values: dict[str, Any]) -> None:
    """Files that are gone since do not matter here; keys that never were would make a command that is refused."""
    try:
        build_spec_from_values(values)
    except ConfigError as error:
        unknown = [line for line in error.lines if "there is no such key" in line]
        if unknown:
            raise ConfigError(*(f"{run / CONFIG}: {line}" for line in unknown)) from error


def of_two(one: Path, other: Path) -> Difference:
    """How the config of `one` leads to that of `other`; where they are written and what they continue does not count."""
    start, target = (_counted(config.read_run(run / CONFIG)) for run in (one, other))
    places = _there(
        list(dict.fromkeys(place for run in (one, other) for place in _given(run_overrides.search_path(run))))
    )
    compositions = Compositions(places)
    overrides = minimal_overrides.between(compositions, places, target, start)
    return Difference(minimal_overrides.differing(start, target), overrides, _command(compositions, places, target))


def _row(key: str, value: Any, source: Source) -> dict[str, Any]:
    return {
        "key": key,
        "value": value,
        "from": source.told(),
        "kind": source.kind,
        "file": source.path(),
        "line": source.line or None,
        "interpolated": source.interpolated,
    }


def _recorded(values: dict[str, Any], today: Origins) -> dict[str, Source]:
    """Where each recorded value comes from: today's place, if it still says so."""
    says, found = config.flatten(today.values), {}
    for key, value in config.flatten(values).items():
        source = today.sources.get(key)
        if source is None:
            found[key] = Source(RECORDED, CONFIG)
        elif minimal_overrides.same(says[key], value):
            found[key] = source
        else:
            found[key] = Source(RECORDED, f"{CONFIG}; today {source.told()} makes it {says[key]}")
    return found


def _counted(values: dict[str, Any]) -> dict[str, Any]:
    action = {key: None if key in UNCOUNTED else value for key, value in values["action"].items()}
    return {**values, "action": action}


def _given(search_path: Sequence[str]) -> list[str]:
    """Without installed packages, whose options are found without a word."""
    known = {f"file://{folder}" for folder in packages.installed().values()}
    return [place for place in search_path if place not in known]


def _there(places: Sequence[str]) -> list[str]:
    """Those that still are."""
    return [place for place in places if packages.folders([place])]


def _command(
    compositions: Compositions, places: Sequence[str], values: dict[str, Any], typed: Sequence[str] = ()
) -> str:
    """What to type for these values; a search path is part of it only where it makes it shorter."""
    found = minimal_overrides.between(compositions, places, values, typed=typed)
    if places:
        without = minimal_overrides.between(Compositions(), (), values, typed=typed)
        if len(without) <= len(found):
            return override_syntax.command(without)
    return override_syntax.command(found, places)
