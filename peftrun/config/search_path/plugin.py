"""Puts installed packages of configs on the search path of every composition.

Hydra takes plugins from the package `hydra_plugins` alone. This one is not there: it is registered in code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from peftrun.config.search_path import packages

PROVIDER = packages.GROUP  # of these folders on Hydra's search path
CALLER_PROVIDER = "given"  # of those that a caller from Python names
_CALLER_PATHS: list[str] = []


class TeamPackages(SearchPathPlugin):
    """Puts the installed packages behind peftrun's own options, and behind what was given."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it makes a search path."""
        for place in _CALLER_PATHS:
            search_path.append(CALLER_PROVIDER, place)
        found = packages.find_config_packages()
        if found:
            search_path.append("schema", "structured://")  # Hydra puts --config-dir before the first one of this name
        for folder in found.values():
            search_path.append(PROVIDER, f"file://{folder}")


def register_search_path() -> None:
    """Makes the installed packages known to every composition from now on."""
    Plugins.instance().register(TeamPackages)


@contextmanager
def extend_search_path(places: Sequence[str]) -> Iterator[None]:
    """Hydra started inside looks into these too, before the installed packages: `file://FOLDER`, `pkg://PACKAGE`, FOLDER."""
    before = list(_CALLER_PATHS)
    _CALLER_PATHS[:] = [place if "://" in place else f"file://{Path(place).resolve()}" for place in places]
    try:
        yield
    finally:
        _CALLER_PATHS[:] = before
