"""Hydra plugins: one adds installed config packages to the search path of every composition, one reads the files of folders fast.

Hydra finds plugins only in the package `hydra_plugins`. These are elsewhere, so they are registered in code.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from peftrun.config.search_path import packages
from peftrun.config.yaml_files import load_yaml

PROVIDER = packages.GROUP  # Hydra's name for the origin of these entries of the search path
CALLER_PROVIDER = "given"  # the same for folders given from Python
_CALLER_PATHS: list[str] = []


class TeamPackages(SearchPathPlugin):
    """Appends the installed packages after peftrun's own options and after given folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it builds a search path."""
        for path in _CALLER_PATHS:
            search_path.append(CALLER_PROVIDER, path)
        folders = packages.find_config_packages()
        if folders:
            # Hydra inserts --config-dir before the first entry with this provider: it must win over the installed packages.
            search_path.append("schema", "structured://")
        for folder in folders.values():
            search_path.append(PROVIDER, f"file://{folder}")


class FastFileSource(FileConfigSource):
    """Hydra's source of the files of a folder, with a faster parser."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Called by Hydra for each file of a composition. Raises: ConfigLoadError: there is no such file."""
        path = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
        if not os.path.exists(path):
            raise ConfigLoadError(f"Config not found : {path}")
        with open(path, encoding="utf-8") as file:
            header = ConfigSource._get_header_dict(file.read(512))
            file.seek(0)
            return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", load_yaml(file), header)


def register_search_path() -> None:
    """Register the plugins for every composition from now on."""
    Plugins.instance().register(TeamPackages)
    SourcesRegistry.instance().types[FastFileSource.scheme()] = FastFileSource


@contextmanager
def extend_search_path(places: Sequence[str]) -> Iterator[None]:
    """Add entries (`file://FOLDER`, `pkg://PACKAGE`, FOLDER) to the search path of a composition inside, before the installed packages."""
    before = list(_CALLER_PATHS)
    _CALLER_PATHS[:] = [path if "://" in path else f"file://{Path(path).resolve()}" for path in places]
    try:
        yield
    finally:
        _CALLER_PATHS[:] = before
