"""Options of a team that are never read, since peftrun, or a folder before it, has one of the same name. Light."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.config import paths
from peftrun.config.search_path import packages


def find_shadowed_configs(folders: Sequence[Path]) -> dict[Path, Path]:
    """YAML file that is not read → the one of the same name that is. `folders`: beside peftrun's own, the first winning."""
    read: dict[tuple[str, str], Path] = {}
    found: dict[Path, Path] = {}
    for folder in (paths.config_dir(), *folders):
        for group in paths.GROUPS:
            for path in sorted((folder / group).glob("*.yaml")):
                first = read.setdefault((group, path.name), path)
                if first != path:
                    found[path] = first
    return found


def is_of_working_copy(path: Path, read: Path) -> bool:
    """Whether what is read is a working copy of the installed package that `path` is in, which is what its author wants."""
    installed = packages.find_config_packages().values()
    theirs, given = path.parents[1], read.parents[1]
    return theirs in installed and given not in installed and theirs.name == given.name


def format_shadow(path: Path, read: Path) -> str:
    """What to do about it."""
    ours = read.is_relative_to(paths.config_dir())
    owner = f"peftrun's own {path.parent.name}={path.stem}" if ours else str(read)
    return f"{path}: is never read, since {owner} is found first; give the file another name"


def list_chosen_shadows(runtime: Any) -> list[str]:
    """A line for each option that a run has chosen and that stands for another one too. `runtime`: Hydra's part of that name."""
    sources = [one for one in runtime["config_sources"] if one["provider"] not in ("hydra", "main", "schema")]
    teams = packages.list_config_dirs([f"{one['schema']}://{one['path']}" for one in sources])
    if not teams:
        return []
    choices = {(group, f"{option}.yaml") for group, option in runtime["choices"].items()}
    hidden = {
        path: read for path, read in find_shadowed_configs(teams).items() if (path.parent.name, path.name) in choices
    }
    return [format_shadow(path, read) for path, read in hidden.items() if not is_of_working_copy(path, read)]
