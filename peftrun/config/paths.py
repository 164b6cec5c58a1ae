"""Paths of the configuration and the cache. Imports the standard library only."""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = ("action", "model", "lora", "task", "trainer", "device", "tracker", "experiment")
NO_FILE = "there is no such file"


def config_dir() -> Path:
    """The folder `conf/`: in the package if installed from a wheel, else in the checkout."""
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def schemas_dir() -> Path:
    """The folder of the JSON Schemas that the YAML files name in their third line; a team's package has a copy of it."""
    return config_dir() / ".schemas"


def cache_dir() -> Path:
    """The folder for converted base models and fingerprints: `PEFTRUN_CACHE`, else in the user's cache folder."""
    configured = os.environ.get("PEFTRUN_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(configured) if configured else Path(user_cache) / "peftrun"


def no_file(path: str) -> str:
    """Part of a message about a path that is no file."""
    return "is a folder" if Path(path).expanduser().is_dir() else NO_FILE


def list_group_files(group: str, *dirs: Path) -> Iterator[Path]:
    """Every YAML file of a config group, sorted by name in each folder. `dirs`: team folders, which win over peftrun's own."""
    seen: set[str] = set()
    for folder in (*dirs, config_dir()):
        for path in sorted((folder / group).glob("*.yaml")):
            if path.name not in seen:
                seen.add(path.name)
                yield path


def list_group_options(group: str, *dirs: Path) -> list[str]:
    """Valid values of `group=`."""
    return sorted(path.stem for path in list_group_files(group, *dirs))


def read_first_sentence(path: Path) -> str:
    """The description of a YAML file: its first comment line that is not Hydra's `@package`."""
    comments = (line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return next((line for line in comments if not line.startswith("@package")), "")
