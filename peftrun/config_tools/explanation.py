"""Explanations of a configuration, of a run folder, and of the difference between two. Light."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftrun.artifacts import records, run_overrides
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import migrations, override_syntax
from peftrun.config import values as config
from peftrun.config.search_path import packages
from peftrun.config_tools import minimal_overrides
from peftrun.config_tools import provenance as value_origins
from peftrun.config_tools.provenance import RECORDED, ConfigOrigins, ValueSource
from peftrun.errors import ConfigError

IGNORED_ACTION_KEYS = ("resume", "output_dir")  # keys of an action that do not change the result


@dataclass(frozen=True)
class ConfigExplanation:
    """A configuration, the sources of its values, and the command that composes it. `unused_keys`: keys that the run did not use."""

    origins: ConfigOrigins
    command: str
    unused_keys: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        values = config.flatten_keys(self.origins.values)
        return {
            "keys": [
                {
                    "key": key,
                    "value": values[key],
                    "from": source.describe(),
                    "kind": source.kind,
                    "file": source.path(),
                    "line": source.line or None,
                    "interpolated": source.interpolated,
                }
                for key, source in self.origins.sources.items()
            ],
            "choices": [
                {"group": choice.group, "option": choice.option, "by": choice.chosen_by}
                for choice in self.origins.choices
            ],
            "unused_keys": self.unused_keys,
            "command": self.command,
        }


@dataclass(frozen=True)
class ConfigDifference:
    """The difference between two configs.

    Attributes:
        values: key → (first value, second value), where they differ.
        overrides: added to a command of the first run, they give the second config.
        command: the whole command of the second config.
    """

    values: dict[str, tuple[Any, Any]]
    overrides: list[str]
    command: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        rows = [{"key": key, "from": before, "to": after} for key, (before, after) in self.values.items()]
        return {"differences": rows, "overrides": self.overrides, "command": self.command}


def explain_overrides(
    overrides: Sequence[str], search_path: Sequence[str], adapters: Mapping[str, str] | None = None
) -> ConfigExplanation:
    """Explains the config that the overrides compose. `adapters`: see `trace_origins`. Raises: ConfigError: they cannot be composed."""
    extra_path = _drop_installed_packages(search_path)
    compositions = Composer(extra_path)
    try:
        origins = value_origins.trace_origins(compositions, overrides, adapters)
    except compose.REFUSALS as error:
        raise ConfigError(*(compose.explain_overrides(overrides, None, extra_path) or [str(error)])) from error
    return ConfigExplanation(origins, _build_command(compositions, extra_path, origins.values, overrides))


def explain_run(run: Path) -> ConfigExplanation:
    """Explains a run folder's config: its recorded values, which today's options may no longer give.

    Raises: ConfigError: it has keys that do not exist.
    """
    values = config.read_run(run / CONFIG)
    extra_path = _filter_existing(_drop_installed_packages(run_overrides.read_search_path(run)))
    try:
        build_spec_from_values(values)
    except ConfigError as error:  # files may be missing by now; only keys that do not exist rule out a command
        unknown = [line for line in error.lines if "there is no such key" in line]
        if unknown:
            raise ConfigError(*(f"{run / CONFIG}: {line}" for line in unknown)) from error
    compositions = Composer(extra_path)
    # A run that was started from Python with a finished config has no overrides.
    overrides = run_overrides.read_overrides(run) or minimal_overrides.search_overrides(
        compositions, extra_path, values
    )
    # Options may have been removed since; the values are then explained as recorded.
    try:
        current = value_origins.trace_origins(
            compositions, [text for text in overrides if not text.startswith("hydra")], values.get("adapter")
        )
    except (*compose.REFUSALS, ConfigError):
        current = ConfigOrigins({}, {}, [])
    record = records.read_record(run) if (run / RECORD).is_file() else {}
    origins = replace(current, values=values, sources=_trace_recorded(values, current))
    command = _build_command(compositions, extra_path, values, overrides)
    return ConfigExplanation(origins, command, [migrations.rename_key(key)[0] for key in record.get("unused_keys", [])])


def explain_difference(first: Path, second: Path) -> ConfigDifference:
    """How the config of run `first` differs from that of `second`, apart from IGNORED_ACTION_KEYS."""
    start, target = (config.read_run(run / CONFIG) for run in (first, second))
    for values in (start, target):
        values["action"] |= dict.fromkeys(values["action"].keys() & IGNORED_ACTION_KEYS)
    entries = [
        entry for run in (first, second) for entry in _drop_installed_packages(run_overrides.read_search_path(run))
    ]
    extra_path = _filter_existing(list(dict.fromkeys(entries)))
    compositions = Composer(extra_path)
    overrides = minimal_overrides.search_overrides(compositions, extra_path, target, start)
    return ConfigDifference(
        minimal_overrides.diff_values(start, target), overrides, _build_command(compositions, extra_path, target)
    )


def _trace_recorded(values: dict[str, Any], current: ConfigOrigins) -> dict[str, ValueSource]:
    """Key → source of its recorded value: the one in today's options, if that still gives the same value."""
    current_values, sources = config.flatten_keys(current.values), {}
    for key, value in config.flatten_keys(values).items():
        source = current.sources.get(key)
        if source is None:
            sources[key] = ValueSource(RECORDED, CONFIG)
        elif minimal_overrides.is_same_value(current_values[key], value):
            sources[key] = source
        else:
            sources[key] = ValueSource(RECORDED, f"{CONFIG}; today {source.describe()} makes it {current_values[key]}")
    return sources


def _drop_installed_packages(search_path: Sequence[str]) -> list[str]:
    """The search path without installed config packages, which are found without being named."""
    installed = {f"file://{folder}" for folder in packages.find_config_packages().values()}
    return [entry for entry in search_path if entry not in installed]


def _filter_existing(search_path: Sequence[str]) -> list[str]:
    """The entries that still exist."""
    return [entry for entry in search_path if packages.list_config_dirs([entry])]


def _build_command(
    compositions: Composer, search_path: Sequence[str], values: dict[str, Any], typed: Sequence[str] = ()
) -> str:
    """The command that composes these values. It names the search path only if that saves overrides."""
    overrides = minimal_overrides.search_overrides(compositions, search_path, values, typed=typed)
    if search_path:
        builtin_only = minimal_overrides.search_overrides(Composer(), (), values, typed=typed)
        if len(builtin_only) <= len(overrides):
            return override_syntax.format_shell_command(builtin_only)
    return override_syntax.format_shell_command(overrides, search_path)
