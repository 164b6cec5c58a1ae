"""What is told of a configuration, of a run folder, and of two. Light."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.search_path import packages
from peftrun.config_tools import minimal_overrides
from peftrun.config_tools import provenance as value_origins
from peftrun.config_tools.provenance import RECORDED, ConfigOrigins, ValueSource
from peftrun.errors import ConfigError
from peftrun.io import atomic_files

IGNORED_ACTION_KEYS = ("resume", "output_dir")  # of an action: where it is written, and how it came about


@dataclass(frozen=True)
class ConfigExplanation:
    """A configuration, where it comes from, and how it is typed. `unread`: keys that nothing read when it was run."""

    origins: ConfigOrigins
    command: str
    unread: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        values = config.flatten_keys(self.origins.values)
        return {
            "keys": [_describe_key(key, values[key], source) for key, source in self.origins.sources.items()],
            "choices": [
                {"group": one.group, "option": one.option, "by": one.chosen_by} for one in self.origins.choices
            ],
            "unread": self.unread,
            "command": self.command,
        }


@dataclass(frozen=True)
class ConfigDifference:
    """How the config of one run leads to another's: what differs, the overrides, and the whole command of the other."""

    values: dict[str, tuple[Any, Any]]
    overrides: list[str]
    command: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        rows = [{"key": key, "from": one, "to": other} for key, (one, other) in self.values.items()]
        return {"differences": rows, "overrides": self.overrides, "command": self.command}


def explain_overrides(overrides: Sequence[str], search_path: Sequence[str]) -> ConfigExplanation:
    """That of the config that overrides compose. Raises: ConfigError: they cannot be composed."""
    places = _drop_installed_packages(search_path)
    compositions = Composer(places)
    try:
        origins = value_origins.trace_origins(compositions, overrides)
    except compose.REFUSALS as error:
        raise ConfigError(*(compose.explain_overrides(overrides, None, places) or [str(error)])) from error
    return ConfigExplanation(origins, _build_command(compositions, places, origins.values, overrides))


def explain_run(run: Path) -> ConfigExplanation:
    """That of a run folder's config: its values, which today's options may not say any more.

    Raises: ConfigError: it holds keys that no option has.
    """
    values, places = config.read_run(run / CONFIG), _drop_installed_packages(run_overrides.read_search_path(run))
    _check_unknown_keys(run, values)
    compositions = Composer(_filter_existing(places))
    overrides = run_overrides.read_overrides(run) or minimal_overrides.search_overrides(
        compositions, _filter_existing(places), values
    )
    try:
        today = value_origins.trace_origins(compositions, [text for text in overrides if not text.startswith("hydra")])
    except (*compose.REFUSALS, ConfigError):
        today = ConfigOrigins({}, {}, [])
    record = atomic_files.read_json(run / RECORD) if (run / RECORD).is_file() else {}
    origins = replace(today, values=values, sources=_trace_recorded(values, today))
    return ConfigExplanation(
        origins, _build_command(compositions, _filter_existing(places), values, overrides), record.get("unread", [])
    )


def _check_unknown_keys(run: Path, values: dict[str, Any]) -> None:
    """Files that are gone since do not matter here; keys that never were would make a command that is refused."""
    try:
        build_spec_from_values(values)
    except ConfigError as error:
        unknown = [line for line in error.lines if "there is no such key" in line]
        if unknown:
            raise ConfigError(*(f"{run / CONFIG}: {line}" for line in unknown)) from error


def explain_difference(one: Path, other: Path) -> ConfigDifference:
    """How the config of `one` leads to that of `other`; where they are written and what they continue does not count."""
    start, target = (_drop_ignored_keys(config.read_run(run / CONFIG)) for run in (one, other))
    places = _filter_existing(
        list(
            dict.fromkeys(
                place for run in (one, other) for place in _drop_installed_packages(run_overrides.read_search_path(run))
            )
        )
    )
    compositions = Composer(places)
    overrides = minimal_overrides.search_overrides(compositions, places, target, start)
    return ConfigDifference(
        minimal_overrides.diff_values(start, target), overrides, _build_command(compositions, places, target)
    )


def _describe_key(key: str, value: Any, source: ValueSource) -> dict[str, Any]:
    return {
        "key": key,
        "value": value,
        "from": source.told(),
        "kind": source.kind,
        "file": source.path(),
        "line": source.line or None,
        "interpolated": source.interpolated,
    }


def _trace_recorded(values: dict[str, Any], today: ConfigOrigins) -> dict[str, ValueSource]:
    """Where each recorded value comes from: today's place, if it still says so."""
    says, found = config.flatten_keys(today.values), {}
    for key, value in config.flatten_keys(values).items():
        source = today.sources.get(key)
        if source is None:
            found[key] = ValueSource(RECORDED, CONFIG)
        elif minimal_overrides.is_same_value(says[key], value):
            found[key] = source
        else:
            found[key] = ValueSource(RECORDED, f"{CONFIG}; today {source.told()} makes it {says[key]}")
    return found


def _drop_ignored_keys(values: dict[str, Any]) -> dict[str, Any]:
    action = {key: None if key in IGNORED_ACTION_KEYS else value for key, value in values["action"].items()}
    return {**values, "action": action}


def _drop_installed_packages(search_path: Sequence[str]) -> list[str]:
    """Without installed packages, whose options are found without a word."""
    known = {f"file://{folder}" for folder in packages.find_config_packages().values()}
    return [place for place in search_path if place not in known]


def _filter_existing(places: Sequence[str]) -> list[str]:
    """Those that still are."""
    return [place for place in places if packages.list_config_dirs([place])]


def _build_command(
    compositions: Composer, places: Sequence[str], values: dict[str, Any], typed: Sequence[str] = ()
) -> str:
    """What to type for these values; a search path is part of it only where it makes it shorter."""
    found = minimal_overrides.search_overrides(compositions, places, values, typed=typed)
    if places:
        without = minimal_overrides.search_overrides(Composer(), (), values, typed=typed)
        if len(without) <= len(found):
            return override_syntax.format_shell_command(without)
    return override_syntax.format_shell_command(found, places)
