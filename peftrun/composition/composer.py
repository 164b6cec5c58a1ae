"""Fast repeated composition over one search path: Hydra composes each choice of groups once, single values are set on a copy. Light."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

from hydra import initialize_config_dir
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from peftrun.compat import hydra
from peftrun.config import paths
from peftrun.config import values as config
from peftrun.config.search_path import plugin as team_search_path
from peftrun.config.template_params import MissingParam

ROOT = "config"  # conf/config.yaml
HYDRAS = "hydra"  # Hydra's own part of the config


@contextmanager
def initialize_hydra(search_path: Sequence[str] = ()) -> Iterator[None]:
    """Context in which Hydra can compose, also inside a Hydra run, with the options of peftrun, `search_path` and installed packages."""
    team_search_path.register_search_path()
    with (
        suspend_hydra(),
        team_search_path.extend_search_path(search_path),
        initialize_config_dir(str(paths.config_dir()), version_base="1.3"),
    ):
        yield


@contextmanager
def suspend_hydra() -> Iterator[None]:
    """Temporarily clear Hydra's global state so that a nested compose can initialize its own."""
    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        restore_gh_from_backup(backup)


class _CopyingRepository(hydra.CachingConfigRepository):
    """Returns copies, since Hydra merges later files into the config objects of earlier ones."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(super().load_config(config_path))


class Composer:
    """Composes overrides, without Hydra's own part of the config.

    Args:
        search_path: locations of options beside `conf/`: `file://FOLDER`, `pkg://PACKAGE`.
        hydra_overrides: overrides of Hydra's own part, of which `hydra.searchpath=` names further locations.
        loader: of a Hydra run, in place of one for `search_path`.
    """

    def __init__(
        self,
        search_path: Sequence[str] = (),
        hydra_overrides: Sequence[str] = (),
        loader: hydra.ConfigLoaderImpl | None = None,
    ) -> None:
        self.loader, self.hydra_overrides = loader or _create_loader(search_path), list(hydra_overrides)
        self.repository = hydra.open_repository(self.loader, ROOT, self.hydra_overrides)
        self.copies = _CopyingRepository(self.repository)
        # Cached per instance, since a composition takes Hydra about 50 ms.
        self.parsed, self.chosen, self.option = (
            cache(OverridesParser.create().parse_override),
            cache(self._compose_groups),
            cache(self._compose_option),
        )
        self.is_group = cache(lambda name: bool(self.repository.group_exists(name)))

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Resolved plain values. Raises: compose.REFUSALS: Hydra cannot compose it. ConfigError: an unresolvable interpolation."""
        return to_plain_values(self.compose_config(overrides))

    def compose_config(self, overrides: Sequence[str]) -> DictConfig:
        """The config, which the caller may change. Raises: compose.REFUSALS: Hydra cannot compose it."""
        choices = tuple(text for text in overrides if self.is_group_choice(text))
        cfg = copy.deepcopy(self.chosen(choices))
        for text in overrides:
            if text not in choices:
                self.set_value(cfg, text)
        return cfg

    def set_value(self, cfg: DictConfig, text: str) -> None:
        """Applies an override that is no choice of a group. Raises: compose.REFUSALS: `cfg` may then be changed in part."""
        hydra.apply_overrides([self.parsed(text)], cfg)

    def check_hydra_override(self, text: str) -> None:
        """Raises: compose.REFUSALS: Hydra cannot compose its own part of the config with this override."""
        self.loader.load_configuration(ROOT, [*self.hydra_overrides, text], RunMode.RUN)

    def defaults(self, overrides: Sequence[str]) -> hydra.DefaultsList:
        """Hydra's defaults list: the files that are merged, in order, and the overrides."""
        return hydra.create_defaults_list(
            repo=self.repository,
            config_name=ROOT,
            overrides_list=[self.parsed(text) for text in overrides],
            prepend_hydra=True,
            skip_missing=False,
        )

    def files(self, overrides: Sequence[str]) -> list[ResultDefault]:
        """The files of the defaults list, without those of Hydra's own part."""
        files = []
        for entry in self.defaults(overrides).defaults:
            package, _, _ = (entry.package or "").partition(".")
            if entry.config_path is not None and HYDRAS not in (package, entry.config_path.partition("/")[0]):
                files.append(entry)
        return files

    def options(self, group: str) -> list[str]:
        """Names of the options of a group."""
        return sorted(self.repository.get_group_options(group))

    def body(self, path: str) -> tuple[dict[str, str], dict[str, Any]]:
        """Group → option from a file's defaults list, and the values the file sets itself, interpolations unresolved."""
        loaded = self.repository.load_config(path)
        values: Any = OmegaConf.to_container(loaded.config) if loaded else {}
        entries = [entry for entry in (loaded and loaded.defaults_list) or [] if isinstance(entry, GroupDefault)]
        choices = {str(entry.group).lstrip("/"): entry.value for entry in entries if isinstance(entry.value, str)}
        return choices, values if isinstance(values, dict) else {}

    def is_group_choice(self, text: str) -> bool:
        """Whether an override selects an option of a group."""
        override = self.parsed(text)
        return self.is_group(override.key_or_group) and not isinstance(override.value(), dict)

    def _compose_groups(self, choices: tuple[str, ...]) -> DictConfig:
        cfg = hydra.merge_files(self.loader, self.files(choices), self.copies)
        with open_dict(cfg):
            cfg.pop(HYDRAS, None)
        OmegaConf.set_struct(cfg, True)  # as Hydra does: an override of an unknown key is an error
        return cfg

    def _compose_option(self, group: str, name: str) -> dict[str, Any]:
        """The values that an option alone sets in its group, interpolations unresolved."""
        defaults = hydra.create_defaults_list(
            repo=self.repository,
            config_name=f"{group}/{name}",
            overrides_list=[],
            prepend_hydra=False,
            skip_missing=True,
        )
        cfg = hydra.merge_files(self.loader, defaults.defaults, self.copies)
        values = OmegaConf.to_container(cfg)
        return dict(values.get(group) or {}) if isinstance(values, dict) else {}


def _create_loader(search_path: Sequence[str]) -> hydra.ConfigLoaderImpl:
    with initialize_hydra(search_path):
        return cast(hydra.ConfigLoaderImpl, GlobalHydra.instance().config_loader())


def to_plain_values(cfg: DictConfig) -> dict[str, Any]:
    """`resolve_values`, but with template parameters that a run would refuse, such as a missing file, as their value."""
    values = config.resolve_values(cfg)
    for key, value in config.flatten_keys(values).items():
        if isinstance(value, MissingParam):
            with suppress(OmegaConfBaseException):  # the parameter has no value at all
                *path, last = key.split(".")
                parent = values
                for name in path:
                    parent = parent[name]
                parent[last] = OmegaConf.select(cfg, key, throw_on_missing=True)
    return values
