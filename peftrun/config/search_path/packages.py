"""Installed packages that bring configs: those with an entry point of the group `peftrun.configs`. Light, and without Hydra.

    [project.entry-points."peftrun.configs"]
    our_templates = "our_templates"      # a name, and the package that holds the folders task/, lora/, experiment/, …

The packages are looked for, never imported.
"""

from collections.abc import Sequence
from importlib.metadata import EntryPoints, entry_points
from importlib.util import find_spec
from pathlib import Path

from peftrun.config import paths

GROUP = "peftrun.configs"


def find_config_packages() -> dict[str, Path]:
    """Name → folder of groups, of every installed package that brings configs, by name. One whose folder is not there is left out."""
    found = {point.name: _find_package_dir(point.value) for point in _read_entry_points()}
    return {name: folder for name, folder in sorted(found.items()) if folder is not None}


def find_broken_packages() -> dict[str, str]:
    """Name → the package that is declared and not there."""
    return {point.name: point.value for point in _read_entry_points() if _find_package_dir(point.value) is None}


def list_config_dirs(search_path: Sequence[str | Path] = ()) -> list[Path]:
    """Where options are beside peftrun's own, the first winning: what a run was given (`file://FOLDER`, `pkg://PACKAGE`, FOLDER), then installed packages."""
    given = [_resolve_place(str(text)) for text in search_path]
    found = [*(one.resolve() for one in given if one is not None), *find_config_packages().values()]
    return [one for one in dict.fromkeys(found) if one.is_dir() and one != paths.config_dir().resolve()]


def _read_entry_points() -> EntryPoints:
    return entry_points(group=GROUP)


def _resolve_place(text: str) -> Path | None:
    scheme, _, rest = text.rpartition("://")
    return _find_package_dir(rest.replace("/", ".")) if scheme == "pkg" else Path(rest).expanduser()


def _find_package_dir(dotted: str) -> Path | None:
    """Where a package lies. Only its first part is looked up, so that nothing is imported."""
    first, *more = dotted.partition(":")[0].strip().split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    roots = (spec.submodule_search_locations or ()) if spec else ()
    places = [Path(root).joinpath(*more) for root in roots]
    return next((place.resolve() for place in places if place.is_dir()), None)
