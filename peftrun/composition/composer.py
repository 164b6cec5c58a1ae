"""Many compositions over one search path, fast: each choice of groups is composed by Hydra once, values are applied to a copy. Light."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from peftrun.composition import compose
from peftrun.config import values as config
from peftrun.config.template_params import MissingParam

ROOT = "config"  # conf/config.yaml
HYDRAS = "hydra"  # the part of the configuration that is Hydra's own


class _CopyingRepository(CachingConfigRepository):
    """Hands out copies: Hydra merges later files into what it is given of earlier ones."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(super().load_config(config_path))


class Composer:
    """What Hydra composes of overrides, its own part left out.

    Args: search_path: where options are looked for beside `conf/`: `file://FOLDER`, `pkg://PACKAGE`.
    """

    def __init__(self, search_path: Sequence[str] = ()) -> None:
        with compose.initialize_hydra(search_path):
            self.loader = cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader())
            _, self.repository = self.loader._parse_overrides_and_create_caching_repo(ROOT, [])
        self.copies = _CopyingRepository(self.repository)
        self.parsed, self.chosen, self.option = cache(_parse_override), cache(self._chosen), cache(self._compose_option)
        self.is_group = cache(self._is_group)

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Resolved plain values. Raises: compose.REFUSALS: Hydra cannot compose it. ConfigError: a loose interpolation."""
        choices = tuple(text for text in overrides if self.is_group_choice(text))
        cfg = copy.deepcopy(self.chosen(choices))
        values = [self.parsed(text) for text in overrides if not self.is_group_choice(text)]
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return to_plain_values(cfg)

    def defaults(self, overrides: Sequence[str]) -> DefaultsList:
        """Hydra's list of files that are merged, in their order, and what was typed beside."""
        return create_defaults_list(
            repo=self.repository,
            config_name=ROOT,
            overrides_list=[self.parsed(text) for text in overrides],
            prepend_hydra=True,
            skip_missing=False,
        )

    def files(self, overrides: Sequence[str]) -> list[ResultDefault]:
        """The files of that list, but for those of Hydra's own part."""
        found = [one for one in self.defaults(overrides).defaults if one.config_path is not None]
        return [
            one for one in found if HYDRAS not in (_take_first(one.package, "."), _take_first(one.config_path, "/"))
        ]

    def options(self, group: str) -> list[str]:
        """Names of the options of a group."""
        return sorted(self.repository.get_group_options(group))

    def body(self, path: str) -> tuple[dict[str, str], dict[str, Any]]:
        """Group → option of a file's defaults list, and what it sets itself, as written."""
        found = self.repository.load_config(path)
        values: Any = OmegaConf.to_container(found.config) if found else {}
        entries = [one for one in (found and found.defaults_list) or [] if isinstance(one, GroupDefault)]
        choices = {str(one.group).lstrip("/"): one.value for one in entries if isinstance(one.value, str)}
        return choices, values if isinstance(values, dict) else {}

    def is_group_choice(self, text: str) -> bool:
        """Whether an override chooses an option of a group."""
        one = self.parsed(text)
        return self.is_group(one.key_or_group) and not isinstance(one.value(), dict)

    def _is_group(self, name: str) -> bool:
        return bool(self.repository.group_exists(name))

    def _chosen(self, choices: tuple[str, ...]) -> DictConfig:
        cfg = self.loader._compose_config_from_defaults_list(self.files(choices), self.copies)
        with open_dict(cfg):
            cfg.pop(HYDRAS, None)
        OmegaConf.set_struct(cfg, True)
        return cfg

    def _compose_option(self, group: str, name: str) -> dict[str, Any]:
        """What an option alone sets of its group, interpolations as they stand."""
        found = create_defaults_list(
            repo=self.repository,
            config_name=f"{group}/{name}",
            overrides_list=[],
            prepend_hydra=False,
            skip_missing=True,
        )
        cfg = self.loader._compose_config_from_defaults_list(found.defaults, self.copies)
        values = OmegaConf.to_container(cfg)
        return dict(values.get(group) or {}) if isinstance(values, dict) else {}


def to_plain_values(cfg: DictConfig) -> dict[str, Any]:
    """`config.plain`; with the values of slots also where a run would refuse them, such as a file that is not there any more."""
    values = config.resolve_values(cfg)
    for key, value in config.flatten_keys(values).items():
        if isinstance(value, MissingParam):
            with suppress(OmegaConfBaseException):  # the slot has no value at all
                _set_value(values, key, OmegaConf.select(cfg, key, throw_on_missing=True))
    return values


def _set_value(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        values = values[name]
    values[last] = value


def _take_first(text: str | None, sign: str) -> str:
    return (text or "").partition(sign)[0]


def _parse_override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)
