"""Installed packages with configs: those with an entry point of the group `peftrun.configs`. Light, and without Hydra.

    [project.entry-points."peftrun.configs"]
    our_templates = "our_templates"      # a name, and the package that holds the folders task/, lora/, experiment/, …

The packages are located, never imported.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftrun.config import paths

GROUP = "peftrun.configs"


def find_config_packages() -> dict[str, Path]:
    """Name → folder of config groups, of every installed package with configs, sorted by name. A missing folder is left out."""
    folders = {point.name: _find_package_dir(point.value) for point in _read_entry_points()}
    return {name: folder for name, folder in sorted(folders.items()) if folder is not None}


def find_broken_packages() -> dict[str, str]:
    """Name → declared package, for packages that are missing."""
    return {point.name: point.value for point in _read_entry_points() if _find_package_dir(point.value) is None}


def list_config_dirs(search_path: Sequence[str | Path] = ()) -> list[Path]:
    """Folders with further options, the first wins: those of `search_path` (`file://FOLDER`, `pkg://PACKAGE`, FOLDER), then installed packages."""
    folders: list[Path] = []
    for entry in map(str, search_path):
        scheme, _, location = entry.rpartition("://")
        folder = _find_package_dir(location.replace("/", ".")) if scheme == "pkg" else Path(location).expanduser()
        folders += [folder.resolve()] if folder is not None else []
    folders += find_config_packages().values()
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir() and folder != paths.config_dir().resolve()]


def _read_entry_points() -> tuple[Any, ...]:
    return _read_entry_points_of(tuple(map(_stat_folder, sys.path)))


@cache
def _read_entry_points_of(search_path: tuple[tuple[str, int], ...]) -> tuple[Any, ...]:
    """Cached by the folders and when each was last changed, as installing and removing does: the metadata of every package is read."""
    declared = (file for folder, _ in search_path for file in Path(folder).glob("*.*-info/entry_points.txt"))
    if not any(GROUP.encode() in file.read_bytes() for file in declared):
        return ()
    from importlib.metadata import entry_points  # takes as long to import as all the rest of `--help`

    return tuple(entry_points(group=GROUP))


def _stat_folder(folder: str) -> tuple[str, int]:
    try:
        return folder, os.stat(folder or ".").st_mtime_ns
    except OSError:
        return folder, 0


def _find_package_dir(dotted: str) -> Path | None:
    """Folder of a package; None if it is missing. find_spec of a submodule would import its parent, so only the first part is looked up."""
    first, *subpackages = dotted.partition(":")[0].strip().split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    roots = (spec.submodule_search_locations or ()) if spec else ()
    folders = [Path(root).joinpath(*subpackages) for root in roots]  # a namespace package has several roots
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)
