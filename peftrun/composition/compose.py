"""When Hydra refuses to compose: find every override that is at fault, and say so in peftrun's words."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from peftrun.checks import folder_hints, peer_keys, validation
from peftrun.checks import trackers as tracker_checks
from peftrun.checks.unknown_keys import explain_unknown_key, find_close_match
from peftrun.composition import adapter_defaults
from peftrun.config import migrations, paths, shorthand, template_params
from peftrun.config import values as config
from peftrun.config.schema import peft_fields
from peftrun.config.search_path import packages
from peftrun.config.search_path import plugin as team_search_path
from peftrun.errors import ConfigError

QUOTING = "quote what holds spaces, commas, brackets or another '=': 'key=\"a, b\"'"
REFUSALS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
ABSENT = re.compile(r"In '[^']+': Could not (find|load) '(?P<group>\w+)/(?P<name>\w+)'")  # as Hydra says it
SEARCH_PATH = "hydra.searchpath="


@dataclass(frozen=True)
class ComposedConfig:
    """`cfg`: the configuration without Hydra's own part, which is `hydra`. `overrides`: what was typed, in full."""

    cfg: DictConfig
    hydra: dict[str, Any]
    overrides: list[str]

    @property
    def run_dir(self) -> Path:
        """The run folder that Hydra would choose."""
        return Path(self.hydra["run"]["dir"])


def compose_run(overrides: Sequence[str], search_path: Sequence[str] = ()) -> ComposedConfig:
    """What Hydra composes of `overrides`, as on the command line.

    Args: search_path: where team configs are: `file://FOLDER`, `pkg://PACKAGE`, or a plain folder.

    Raises: ConfigError: an override cannot be composed.
    """
    in_full, lines = migrations.rename_overrides(shorthand.expand_shorthand(overrides))
    config.report_upgrades(lines)
    try:
        with initialize_hydra(search_path):
            cfg = compose("config", overrides=in_full, return_hydra_config=True)
    except REFUSALS as error:
        known = explain_overrides(in_full, None, search_path) or explain_sweep_values(in_full)
        raise ConfigError(*(known or [summarize_error(error)])) from error
    hydra: dict[str, Any] = OmegaConf.to_container(cfg.hydra)  # type: ignore[assignment]
    hydra["run"]["dir"] = str(cfg.hydra.run.dir)
    with open_dict(cfg):
        del cfg["hydra"]
    return ComposedConfig(cfg, hydra, in_full)


@contextmanager
def initialize_hydra(search_path: Sequence[str] = ()) -> Iterator[None]:
    """Hydra ready to compose inside, whether or not it runs already outside: peftrun's own options, those of `search_path` and of installed packages."""
    team_search_path.register_search_path()
    ours = str(paths.config_dir())
    with (
        suspend_hydra(),
        team_search_path.extend_search_path(search_path),
        initialize_config_dir(ours, version_base="1.3"),
    ):
        yield


@contextmanager
def suspend_hydra() -> Iterator[None]:
    """Hydra as if it did not run; what is composed inside starts one of its own."""
    running = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        restore_gh_from_backup(running)


def explain_overrides(overrides: Sequence[str], team_dir: str | None, search_path: Sequence[str] = ()) -> list[str]:
    """One line for each override that cannot be composed, then one for each problem of what can.

    Args: team_dir: what `--config-dir` named. search_path: as of `compose_run`.
    """
    places = [team_dir, *search_path] if team_dir else list(search_path)
    good = [text for text in overrides if text.startswith(SEARCH_PATH)]
    rest = [text for text in overrides if not text.startswith(SEARCH_PATH)]
    lines, refused = [], []
    whole: DictConfig | None = None  # what is composed of `good`
    with initialize_hydra(places):
        # Groups first: a key may exist only under the option chosen beside it.
        for text in sorted(rest, key=lambda item: "." in item.split("=", 1)[0]):
            try:
                candidates = _expand_sweep(text)
                for candidate in candidates:
                    _compose_config([*good, candidate])
                good.append(candidates[0])
                whole = None
            except REFUSALS as error:
                whole = whole or _compose_config(good)
                lines.append(_explain_override(text, error, whole, packages.list_config_dirs(places)))
                refused.append(text.split("=", 1)[0].lstrip("+~"))
        try:
            adapter_defaults.build_run_spec(whole or _compose_config(good), good)
        except ConfigError as error:
            # A key whose value could not be read is not also "not set".
            lines += [
                line for line in error.lines if not line.startswith(tuple(f"{key} is not set" for key in refused))
            ]
    return lines


def list_default_keys(action: str | None = None) -> list[str]:
    """Every key of a run for which nothing is typed, but perhaps its action."""
    with initialize_hydra():
        return list(config.flatten_keys(config.resolve_values(_compose_config([f"action={action}"] if action else []))))


def explain_sweep_values(overrides: Sequence[str]) -> list[str]:
    """One line for each override that only a sweep can take."""
    return [_explain_sweep_value(text) for text in overrides if len(_expand_sweep(text)) > 1]


def _explain_sweep_value(text: str) -> str:
    key, _, value = text.partition("=")
    if validation.takes_list(key.lstrip("+")):
        return f"{text}: is a list, which stands in brackets; type '{key}=[{value}]' (or -m before it, for a run with each)"
    return f"{text}: several values are a sweep; type -m before them: peftrun -m {text}"


def _compose_config(overrides: list[str]) -> DictConfig:
    return compose("config", overrides=overrides)


def _expand_sweep(text: str) -> list[str]:
    """The overrides that a swept override stands for; an ordinary one stands for itself."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _explain_choice(group: str, value: str, error: Exception, teams: Sequence[Path]) -> str:
    options = {one: paths.list_group_options(one, *teams) for one in paths.GROUPS}
    own = options[group]
    typed = [one.partition("=")[2] for one in _expand_sweep(f"{group}={value}")]  # several: a sweep
    wrong = next((one for one in typed if one not in own), None)
    if wrong is None:  # it is there, and what is in it is at fault
        return f"{group}={value}: {_explain_missing_default(error, options) or summarize_error(error)}"
    meant = peer_keys.translate_option(group, wrong, options)
    if meant is not None and len(typed) == 1:
        return f"{group}={value}: there is no such option; type {meant}"
    near = find_close_match(wrong, own)
    mended = ",".join(near if one == wrong else one for one in typed if one != wrong or near)  # type: ignore[misc]
    advice = f"did you mean {near}? type {group}={mended}" if near else f"type {group}={mended or 'OPTION'}, or omit it"
    what = "such option" if len(typed) == 1 else f"option {wrong}"
    return f"{group}={value}: there is no {what}; options: {', '.join(own)}; {advice}"


def _explain_missing_default(error: Exception, options: dict[str, list[str]]) -> str | None:
    """What is said of an option that names another one which there is not."""
    found = ABSENT.match(str(error))
    if found is None or found["group"] not in options:
        return None
    near = find_close_match(found["name"], options[found["group"]])
    advice = f"did you mean {near}?" if near else f"options: {', '.join(options[found['group']])};"
    return f"chooses {found['group']}={found['name']}, and there is no such option; {advice} write it in the `defaults` of its file"


def summarize_error(error: Exception) -> str:
    """Why a file could not be composed: where its YAML is broken, or what Hydra says of it."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if isinstance(error, MarkedYAMLError) and mark is not None:
        return (
            f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: is not YAML ({error.problem}); mend it there"
        )
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join([first, *more[:1]]) if first.endswith(":") else first


def _explain_override(text: str, error: Exception, composed: DictConfig, teams: Sequence[Path]) -> str:
    key = text.partition("=")[0]
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException:
        return f"{text}: cannot be read as key=value; {_suggest_for_word(text, composed, teams) or _readable(text) or QUOTING}"
    if key.startswith(("+", "~")):
        return f"{text}: {summarize_error(error)}"
    return _explain_key(override.key_or_group, text, error, composed, teams)


def _readable(text: str) -> str | None:
    """What to type for a value that Hydra cannot read: a text in quotes, a `~` in quotes; None: something else is wrong."""
    key, sign, value = text.partition("=")
    if sign and key.lstrip("+") in shorthand.TEXTS:
        return f"type {shlex.quote(shorthand.in_quotes(text))}"
    mended = shorthand.tilde_in_quotes(value)
    if mended and _can_be_read(f"{key}={mended}"):
        return f"a ~ that begins no path of a home folder stands in quotes; type {shlex.quote(f'{key}={mended}')}"
    return f"names in braces stand without quotes: '{key}={{my_name: VALUE}}'" if value.startswith("{") else None


def _can_be_read(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def _suggest_for_word(text: str, composed: DictConfig, teams: Sequence[Path]) -> str | None:
    """What to type for a word that stands alone: the name of an action or an option, of a file of values, or a place to look at."""
    if "=" in text:
        return None
    if text.endswith((".yaml", ".yml")):
        return peer_keys.FILE
    options = {group: paths.list_group_options(group, *teams) for group in paths.GROUPS}
    if text in options["action"]:
        return f"type action={text}"
    meant = peer_keys.WORDS.get(text) or peer_keys.translate_option("", text, options)
    if meant is None and ("/" in text or text.endswith(peer_keys.SUFFIXES) or Path(text).expanduser().exists()):
        meant = folder_hints.place(str(composed.action.name), "path", text)
    return f"type {meant}" if meant else None


def _explain_hydra_group(name: str, value: str) -> str | None:
    if name == "hydra/launcher":
        options = ", ".join(["basic", *paths.list_group_options(name)])
        return f"{name}={value}: there is no such launcher; launchers: {options}; type {name}=shared_base"
    if name == "hydra/sweeper":
        return f"{name}={value}: there is no such sweeper; sweepers: basic, optuna; type {name}=optuna, or omit it"
    return None


def _explain_key(name: str, text: str, error: Exception, composed: DictConfig, teams: Sequence[Path]) -> str:
    value = text.partition("=")[2]
    if name in paths.GROUPS:
        return _explain_choice(name, value, error, teams)
    if name.startswith("hydra"):
        return _explain_hydra_group(name, value) or f"{text}: {summarize_error(error)}"
    if name.startswith("slots."):
        return template_params.explain_unknown_param(
            name.removeprefix("slots."), value, config.resolve_values(composed)
        )
    other = (
        tracker_checks.suggest_other_tracker(name, value, str(composed.tracker.name)) if "tracker" in composed else None
    )
    if other:
        return other
    known = list(config.flatten_keys(config.resolve_values(composed)))
    if any(item.startswith(f"{name}.") for item in known):
        return f"{text}: the chosen option fills this mapping already, and new keys must be forced; type '++{text}'"
    return (
        _place(text, composed)
        or _explain_other_action(name, text)
        or _explain_peft_field(name, text, composed)
        or explain_unknown_key(name, value, known)
    )


def _place(text: str, composed: DictConfig) -> str | None:
    """What is said of a folder or file that the action is to look at, where its key is called otherwise."""
    key, _, value = text.partition("=")
    action = str(composed.action.name)
    meant = folder_hints.place(action, key.removeprefix("action."), value)
    return f"{text}: there is no such key of action={action}; type {meant}" if meant else None


def _explain_peft_field(name: str, text: str, composed: DictConfig) -> str | None:
    known = peft_fields.get_accepted_fields(str(composed.lora.method)) if name.startswith("lora.") else {}
    added = f"{text}: the chosen option does not show this field of PEFT's, so it must be added; type '++{text}'"
    return added if name.partition(".")[2].partition(".")[0] in known else None


def _explain_other_action(name: str, text: str) -> str | None:
    owners = shorthand.list_actions_with(name.removeprefix("action.")) if name.startswith("action.") else []
    return f"{text}: is a key of action={', '.join(owners)}; type action={owners[0]}, or omit it" if owners else None
