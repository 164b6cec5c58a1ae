"""Hydra plugin that adds installed config packages to the search path of every composition.

Hydra finds plugins only in the package `hydra_plugins`. This one is elsewhere, so it is registered in code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from peftrun.compat.hydra import read_files_with
from peftrun.config.search_path import old_files, packages
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


def register_search_path() -> None:
    """Register the plugin, and how files are read, for every composition from now on."""
    Plugins.instance().register(TeamPackages)
    read_files_with(load_yaml, old_files.rename_loaded)


@contextmanager
def extend_search_path(places: Sequence[str]) -> Iterator[None]:
    """Add entries (`file://FOLDER`, `pkg://PACKAGE`, FOLDER) to the search path of a composition inside, before the installed packages."""
    before = list(_CALLER_PATHS)
    _CALLER_PATHS[:] = [path if "://" in path else f"file://{Path(path).resolve()}" for path in places]
    try:
        yield
    finally:
        _CALLER_PATHS[:] = before
