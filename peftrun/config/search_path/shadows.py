"""Team options that are shadowed: peftrun, or an earlier folder of the search path, has a file of the same name. Light."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.config import migrations, paths
from peftrun.config.search_path import packages


def find_shadowed_configs(folders: Sequence[Path]) -> dict[Path, Path]:
    """YAML file that is never read → the file of the same name that is. `folders`: searched after peftrun's own, the first wins."""
    # (group, file name) → file. An old name of an option is that option.
    read = {
        (group, f"{old}.yaml"): paths.config_dir() / group / f"{new}.yaml"
        for (group, old), (new, _) in migrations.RENAMED_OPTIONS.items()
    }
    shadowed: dict[Path, Path] = {}
    for folder in (paths.config_dir(), *folders):
        for group in paths.GROUPS:
            for path in sorted((folder / group).glob("*.yaml")):
                first = read.setdefault((group, path.name), path)
                if first != path:
                    shadowed[path] = first
    return shadowed


def is_of_working_copy(path: Path, read: Path) -> bool:
    """Whether `read` is in a working copy of the installed package of `path`, as its author intends."""
    installed = packages.find_config_packages().values()
    shadowed_root, read_root = path.parents[1], read.parents[1]
    return shadowed_root in installed and read_root not in installed and shadowed_root.name == read_root.name


def format_shadow(path: Path, read: Path) -> str:
    """A line for a shadowed file: what shadows it, and what to do."""
    is_builtin = read.is_relative_to(paths.config_dir())
    owner = f"peftrun's own {read.parent.name}={read.stem}" if is_builtin else str(read)
    return f"{path}: is never read, since {owner} is found first; give the file another name"


def list_chosen_shadows(runtime: Any) -> list[str]:
    """A line for each chosen option of a run that shadows another one. `runtime`: the node `hydra.runtime`."""
    sources = [source for source in runtime["config_sources"] if source["provider"] not in ("hydra", "main", "schema")]
    team_dirs = packages.list_config_dirs([f"{source['schema']}://{source['path']}" for source in sources])
    if not team_dirs:
        return []
    choices = {(group, f"{option}.yaml") for group, option in runtime["choices"].items()}
    return [
        format_shadow(path, read)
        for path, read in find_shadowed_configs(team_dirs).items()
        if (read.parent.name, read.name) in choices and not is_of_working_copy(path, read)
    ]
