"""Hydra 1.3: the loader's steps, so that a composition is reused; its flags; and where it takes plugins from. Light."""

import os
import sys
import zipfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, ListConfig

__all__ = [
    "BasicLauncher",
    "CachingConfigRepository",
    "ConfigLoaderImpl",
    "DefaultsList",
    "apply_overrides",
    "build_flag_parser",
    "create_defaults_list",
    "create_job_return",
    "merge_files",
    "open_repository",
    "read_files_with",
    "register_plugin",
    "skip_mode_composition",
]


def open_repository(
    loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str] = ()
) -> CachingConfigRepository:
    """The files of the loader's search path, each read once; `overrides` may extend the path. Hydra makes one for each composition."""
    return loader._parse_overrides_and_create_caching_repo(config_name, list(overrides))[1]


def merge_files(loader: ConfigLoaderImpl, files: list[ResultDefault], repository: IConfigRepository) -> DictConfig:
    """The files of a defaults list merged in their order. Hydra composes nothing without its own part of the config."""
    return loader._compose_config_from_defaults_list(files, repository)


def apply_overrides(overrides: list[Override], cfg: DictConfig) -> None:
    """Sets values in a composed config, in place. Hydra composes everything anew to set one."""
    ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)


def build_flag_parser() -> tuple[ArgumentParser, list[str]]:
    """Hydra's parser of the command line, and all flags that it knows: hydra.main reports its errors itself, and exits."""
    parser = get_args_parser()
    return parser, [text for option in parser._actions for text in option.option_strings]


@contextmanager
def skip_mode_composition() -> Iterator[None]:
    """Inside, hydra.main skips its first composition, which only looks for `hydra.mode` in the config files."""
    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def create_job_return(overrides: Sequence[str], objective: float | None) -> JobReturn:
    """The result of a completed job, as Hydra's own launchers make it."""
    return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=objective)


def read_files_with(
    load: Callable[[TextIO], DictConfig | ListConfig], convert: Callable[[ConfigResult, str], ConfigResult]
) -> None:
    """Makes Hydra parse the files of folders and packages by `load`, since its own sources call OmegaConf's slower parser.

    Args: convert: applied to what was read of a file, with its path in the folder or package.
    """

    def read(source: ConfigSource, file: TextIO) -> ConfigResult:
        header = ConfigSource._get_header_dict(file.read(512))
        file.seek(0)
        return ConfigResult(source.provider, f"{source.scheme()}://{source.path}", load(file), header)

    class FileSource(FileConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            """Called by Hydra for each file of a composition. Raises: ConfigLoadError: there is no such file."""
            path = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
            if not os.path.exists(path):
                raise ConfigLoadError(f"Config not found : {path}")
            with open(path, encoding="utf-8") as file:
                return convert(read(self, file), config_path)

    class PackageSource(ImportlibResourcesConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            """The same."""
            return convert(super().load_config(config_path), config_path)

        def _read_config(self, res: Any) -> ConfigResult:
            if isinstance(res, zipfile.Path):
                return super()._read_config(res)
            with res.open(encoding="utf-8") as file:
                return read(self, file)

    Plugins.instance()  # registers Hydra's own sources, of which the registry keeps the first of a scheme
    SourcesRegistry.instance().types |= {source.scheme(): source for source in (FileSource, PackageSource)}


def register_plugin(plugin: type[Any]) -> str:
    """Registers a plugin; its name for `_target_`. Hydra takes plugins from the package `hydra_plugins` only, and ours are not installed there."""
    parent, child = "hydra_plugins", "peftrun_sweep"
    try:
        package = import_module(parent)  # exists if other Hydra plugins are installed
    except ImportError:
        package = sys.modules[parent] = ModuleType(parent)
        package.__path__ = []  # marks it as a package, so that Hydra can scan it
    plugin.__module__ = name = f"{parent}.{child}"
    module = sys.modules.setdefault(name, ModuleType(name))
    setattr(package, child, module)
    setattr(module, plugin.__name__, plugin)
    Plugins.instance().register(plugin)
    return f"{name}.{plugin.__name__}"
