"""When Hydra refuses to compose: find every override that is at fault, and say so in peftrun's words."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from peftrun import config, paths
from peftrun.errors import ConfigError

QUOTING = "quote what holds spaces, commas or brackets: 'key=\"a, b\"'"
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def compose_run(overrides: Sequence[str]) -> tuple[DictConfig, str]:
    """The composed configuration without Hydra's own part, and the run folder it names.

    Raises: ConfigError: an override cannot be composed.
    """
    try:
        with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    except REFUSALS as error:
        raise ConfigError(*(explain(overrides, None) or [str(error)])) from error
    run_dir = str(cfg.hydra.run.dir)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, run_dir


def explain(overrides: Sequence[str], team_dir: str | None) -> list[str]:
    """One line for each override that cannot be composed, then one for each problem of what can."""
    if team_dir and not Path(team_dir).is_dir():
        return [f"--config-dir {team_dir}: there is no such folder; name one laid out like conf/"]
    good = [f"hydra.searchpath=[file://{Path(team_dir).resolve()}]"] if team_dir else []
    lines, refused = [], []
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        # Groups first: a key may exist only under the option chosen beside it.
        for text in sorted(overrides, key=lambda item: "." in item.split("=", 1)[0]):
            try:
                candidates = _single(text)
                for candidate in candidates:
                    _compose([*good, candidate])
                good.append(candidates[0])
            except REFUSALS as error:
                lines.append(_line(text, error, _compose(good), team_dir))
                refused.append(text.split("=", 1)[0].lstrip("+~"))
        try:
            config.build(_compose(good))
        except ConfigError as error:
            # A key whose value could not be read is not also "not set".
            lines += [
                line for line in error.lines if not line.startswith(tuple(f"{key} is not set" for key in refused))
            ]
    return lines


def _compose(overrides: list[str]) -> DictConfig:
    return compose("config", overrides=overrides)


def _single(text: str) -> list[str]:
    """The overrides that a swept override stands for; an ordinary one stands for itself."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _line(text: str, error: Exception, composed: DictConfig, team_dir: str | None) -> str:
    key, _, value = text.partition("=")
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException:
        advice = (
            f"names in braces stand without quotes: '{key}={{my_name: VALUE}}'" if value.startswith("{") else QUOTING
        )
        return f"{text}: cannot be read as key=value; {advice}"
    name = override.key_or_group
    if name in paths.GROUPS:
        options = ", ".join(paths.group_options(name, *([Path(team_dir)] if team_dir else [])))
        return f"{name}={value}: there is no such option; options: {options}; type {name}=OPTION, or omit it"
    if name == "hydra/launcher":
        options = ", ".join(["basic", *paths.group_options(name)])
        return f"{name}={value}: there is no such launcher; launchers: {options}; type {name}=shared_base"
    if key.startswith(("hydra", "+", "~")):
        return f"{text}: {str(error).splitlines()[0]}"
    known = list(config.flatten(config.plain(composed)))
    if any(item.startswith(f"{name}.") for item in known):
        return f"{text}: the chosen option fills this mapping already, and new keys must be forced; type '++{text}'"
    return config.unknown_key(name, value, known)
