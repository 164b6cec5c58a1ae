"""Compose configs with Hydra; when it refuses, find every wrong override and explain it."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from peftrun.checks import folder_hints, peer_keys, validation
from peftrun.checks import trackers as tracker_checks
from peftrun.checks.unknown_keys import explain_unknown_key, find_close_match, is_like_nothing
from peftrun.composition import adapter_defaults
from peftrun.composition.composer import HYDRAS, Composer, initialize_hydra
from peftrun.config import paths, shorthand, template_params
from peftrun.config import values as config
from peftrun.config.schema import peft_fields
from peftrun.config.schema.method_traits import get_method_traits
from peftrun.config.search_path import packages
from peftrun.errors import ConfigError

QUOTING_ADVICE = (
    "quote what holds spaces, commas, brackets, signs or another '=': 'key=\"a, b\"', in a list 'key=[\"<a>\"]'"
)
REFUSALS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
MISSING_DEFAULT = re.compile(
    r"In '[^']+': Could not (find|load) '(?P<group>\w+)/(?P<name>\w+)'"
)  # wording of Hydra 1.3
SEARCH_PATH = "hydra.searchpath="  # kept in every attempt below: options of the other overrides may come from there


@dataclass(frozen=True)
class ComposedConfig:
    """`cfg`: the config without Hydra's own part, which is `hydra`. `overrides`: the typed overrides, in full."""

    cfg: DictConfig
    hydra: dict[str, Any]
    overrides: list[str]

    @property
    def run_dir(self) -> Path:
        """The run folder that Hydra would use."""
        return Path(self.hydra["run"]["dir"])


def compose_run(overrides: Sequence[str], search_path: Sequence[str] = ()) -> ComposedConfig:
    """Compose `overrides` as on the command line.

    Args: search_path: locations of team configs: `file://FOLDER`, `pkg://PACKAGE`, or a plain folder.

    Raises: ConfigError: an override cannot be composed.
    """
    full_overrides, renamed = shorthand.expand_overrides(overrides)
    config.report_upgrades(renamed)
    try:
        with initialize_hydra(search_path):
            cfg = compose("config", overrides=full_overrides, return_hydra_config=True)
    except REFUSALS as error:
        problems = explain_overrides(full_overrides, None, search_path) or explain_sweep_values(full_overrides)
        raise ConfigError(*(problems or [summarize_error(error)])) from error
    hydra: dict[str, Any] = OmegaConf.to_container(cfg.hydra)  # type: ignore[assignment]
    # The container keeps interpolations such as ${now:…}; the attribute resolves them.
    hydra["run"]["dir"] = str(cfg.hydra.run.dir)
    with open_dict(cfg):
        del cfg["hydra"]
    return ComposedConfig(cfg, hydra, full_overrides)


def explain_overrides(overrides: Sequence[str], team_dir: str | None, search_path: Sequence[str] = ()) -> list[str]:
    """One message per override that cannot be composed, then one per problem of the rest.

    Args: team_dir: value of `--config-dir`. search_path: see `compose_run`.
    """
    locations = [team_dir, *search_path] if team_dir else list(search_path)
    composer = Composer(locations, [text for text in overrides if text.startswith(SEARCH_PATH)])
    accepted: list[str] = []
    lines, refused_keys = [], []
    cfg = composer.compose_config(accepted)
    # Groups first: a key may exist only in an option selected on the same command line.
    for text in sorted(overrides, key=lambda item: "." in item.split("=", 1)[0]):
        if text.startswith(SEARCH_PATH):
            continue
        try:
            cfg = _add_override(composer, cfg, accepted, text)
        except REFUSALS as error:
            cfg = composer.compose_config(accepted)
            lines.append(_explain_override(text, error, cfg, packages.list_config_dirs(locations)))
            refused_keys.append(text.split("=", 1)[0].lstrip("+~"))
    try:
        adapter_defaults.check_values(adapter_defaults.resolve_values(cfg, accepted), accepted)
    except ConfigError as error:
        # A key whose value was refused above is not reported as missing too.
        lines += [
            line for line in error.lines if not line.startswith(tuple(f"{key} is not set" for key in refused_keys))
        ]
    return lines


def _add_override(composer: Composer, cfg: DictConfig, accepted: list[str], text: str) -> DictConfig:
    """The config `cfg` of `accepted` with one more override, which is appended to them; of a swept one the first value, after all are tried.

    Raises: REFUSALS: Hydra cannot compose it.
    """
    values = _expand_sweep(text)
    if text.lstrip("+~").startswith(HYDRAS):
        for value in values:
            composer.check_hydra_override(value)
        return cfg
    if len(values) == 1 and not composer.is_group_choice(text):
        composer.set_value(cfg, text)
    else:
        cfg, *_ = [composer.compose_config([*accepted, value]) for value in values]
    accepted.append(values[0])
    return cfg


def list_default_keys(action: str | None = None) -> list[str]:
    """Every key of the default config, or of that of an action."""
    cfg = Composer().compose_config([f"action={action}"] if action else [])
    return list(config.flatten_keys(config.resolve_values(cfg)))


def explain_sweep_values(overrides: Sequence[str]) -> list[str]:
    """One message per override with several values, which only a sweep can take."""
    lines = []
    for text in overrides:
        if len(_expand_sweep(text)) > 1:
            key, _, value = text.partition("=")
            if validation.takes_list(key.lstrip("+")):
                lines.append(
                    f"{text}: a list needs brackets; type '{key}=[{value}]' (or -m before it, for a run with each)"
                )
            elif shorthand.holds_text(key.lstrip("+")):
                lines.append(f"{text}: a text with a comma needs quotes; type {shlex.quote(shorthand.in_quotes(text))}")
            else:
                lines.append(f"{text}: several values are a sweep; type -m before them: peftrun -m {text}")
    return lines


def _expand_sweep(text: str) -> list[str]:
    """The single overrides of a swept override; an ordinary one by itself."""
    override = OverridesParser.create().parse_override(text)
    # Hydra parses `a,b`, choice(…), range(…) and glob(…) as sweeps.
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _explain_choice(group: str, value: str, error: Exception, teams: Sequence[Path]) -> str:
    options = {name: paths.list_group_options(name, *teams) for name in paths.GROUPS}
    group_options = options[group]
    values = [text.partition("=")[2] for text in _expand_sweep(f"{group}={value}")]  # several: a sweep
    unknown = next((name for name in values if name not in group_options), None)
    if unknown is None:  # all exist, so the error is in a file
        return f"{group}={value}: {_explain_missing_default(error, options) or summarize_error(error)}"
    missing = get_method_traits(unknown).missing_input if group == "lora" else None
    if missing:
        return f"{group}={value}: is a method of PEFT that peftrun does not train: it {missing}; type {group}=OPTION, one of {', '.join(group_options)}"
    translated = peer_keys.translate_option(group, unknown, options)
    if translated is not None and len(values) == 1:
        return f"{group}={value}: there is no such option; type {translated}"
    nearest = find_close_match(unknown, group_options)
    fixed = ",".join(nearest if name == unknown else name for name in values if name != unknown or nearest)  # type: ignore[misc]
    advice = (
        f"did you mean {nearest}? type {group}={fixed}" if nearest else f"type {group}={fixed or 'OPTION'}, or omit it"
    )
    subject = "such option" if len(values) == 1 else f"option {unknown}"
    return f"{group}={value}: there is no {subject}; options: {', '.join(group_options)}; {advice}"


def _explain_missing_default(error: Exception, options: dict[str, list[str]]) -> str | None:
    """The message for an option whose defaults list names an option that does not exist; None for other errors."""
    match = MISSING_DEFAULT.match(str(error))
    if match is None or match["group"] not in options:
        return None
    nearest = find_close_match(match["name"], options[match["group"]])
    advice = f"did you mean {nearest}?" if nearest else f"options: {', '.join(options[match['group']])};"
    return f"selects {match['group']}={match['name']}, and there is no such option; {advice} write it in the `defaults` of its file"


def summarize_error(error: Exception) -> str:
    """Why a file could not be composed: the position of a YAML error, or Hydra's message on one line."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if isinstance(error, MarkedYAMLError) and mark is not None:
        return (
            f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: is not YAML ({error.problem}); fix it there"
        )
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join([first, *others[:1]]) if first.endswith(":") else first


def _explain_override(text: str, error: Exception, composed: DictConfig, teams: Sequence[Path]) -> str:
    key = text.partition("=")[0]
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException:
        return f"{text}: cannot be read as key=value; {_suggest_for_word(text, composed, teams) or _suggest_quoting(text) or QUOTING_ADVICE}"
    if key.startswith(("+", "~")):
        return f"{text}: {summarize_error(error)}"
    return _explain_key(override.key_or_group, text, error, composed, teams)


def _suggest_quoting(text: str) -> str | None:
    """How to quote a value that Hydra cannot parse: a text, or a value with `~`; None: something else is wrong."""
    key, sign, value = text.partition("=")
    if sign and key.lstrip("+") in shorthand.TEXTS:
        return f"type {shlex.quote(shorthand.in_quotes(text))}"
    quoted = shorthand.tilde_in_quotes(value)
    with suppress(HydraException):
        if quoted and OverridesParser.create().parse_override(f"{key}={quoted}"):
            return f"a ~ that is not the start of a home folder needs quotes; type {shlex.quote(f'{key}={quoted}')}"
    return f"names in braces need no quotes: '{key}={{my_name: VALUE}}'" if value.startswith("{") else None


def _suggest_for_word(text: str, composed: DictConfig, teams: Sequence[Path]) -> str | None:
    """What to type for a word without `=`: the name of an action, an option or a config file, or a path."""
    if "=" in text:
        return None
    if text.endswith((".yaml", ".yml")):
        return peer_keys.FILE
    options = {group: paths.list_group_options(group, *teams) for group in paths.GROUPS}
    if text in options["action"]:
        return f"type action={text}"
    suggestion = peer_keys.WORDS.get(text) or peer_keys.translate_option("", text, options)
    if suggestion is None and ("/" in text or text.endswith(peer_keys.SUFFIXES) or Path(text).expanduser().exists()):
        suggestion = folder_hints.place(str(composed.action.name), "path", text)
    return f"type {suggestion}" if suggestion else None


def _explain_hydra_key(name: str, text: str, error: Exception) -> str:
    if name == "hydra/launcher":
        launchers = ", ".join(["basic", *paths.list_group_options(name)])
        return f"{text}: there is no such launcher; launchers: {launchers}; type {name}=shared_base"
    if name == "hydra/sweeper":
        return f"{text}: there is no such sweeper; sweepers: basic, optuna; type {name}=optuna, or omit it"
    return f"{text}: {summarize_error(error)}"


def _explain_key(name: str, text: str, error: Exception, composed: DictConfig, teams: Sequence[Path]) -> str:
    value = text.partition("=")[2]
    if name in paths.GROUPS:
        return _explain_choice(name, value, error, teams)
    if name.startswith("hydra"):
        return _explain_hydra_key(name, text, error)
    if name.startswith("params."):
        return template_params.explain_unknown_param(
            name.removeprefix("params."), value, config.resolve_values(composed)
        )
    other = (
        tracker_checks.suggest_other_tracker(name, value, str(composed.tracker.name)) if "tracker" in composed else None
    )
    if other:
        return other
    keys = list(config.flatten_keys(config.resolve_values(composed)))
    if any(key.startswith(f"{name}.") for key in keys):
        return f"{text}: the chosen option fills this mapping already, and new keys must be forced; type '++{text}'"
    return _explain_misplaced_key(name, text, composed, keys) or explain_unknown_key(name, value, keys)


def _explain_misplaced_key(name: str, text: str, composed: DictConfig, keys: list[str]) -> str | None:
    """The message for a key that exists under another name, in another action, or in PEFT; None otherwise."""
    action, value, action_key = str(composed.action.name), text.partition("=")[2], name.removeprefix("action.")
    # Each action has its own key for the folder or file to work on, such as run, adapter or path.
    if suggestion := folder_hints.place(action, text.partition("=")[0].removeprefix("action."), value):
        return f"{text}: there is no such key of action={action}; type {suggestion}"
    is_action_key = name.startswith("action.") or ("." not in name and is_like_nothing(name, value, keys))
    if is_action_key and (owners := shorthand.list_actions_with(action_key)):
        return f"{text}: is a key of action={', '.join(owners)}; type action={owners[0]}, or omit it"
    # The options list the usual fields; Hydra accepts the others only with `++`.
    fields = peft_fields.get_accepted_fields(str(composed.lora.method)) if name.startswith("lora.") else {}
    if name.partition(".")[2].partition(".")[0] in fields:
        return f"{text}: the chosen option does not list this PEFT field, so it must be added; type '++{text}'"
    return None
