"""Where the configuration and the cache live. Nothing here imports more than the standard library."""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = ("action", "model", "lora", "task", "trainer", "device", "tracker", "experiment")


def config_dir() -> Path:
    """The folder `conf/`: inside the package when installed from a wheel, else the checkout's."""
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def schemas_dir() -> Path:
    """The folder of the JSON Schemas that the YAML files name in their third line; a team's package keeps a copy of it."""
    return config_dir() / ".schemas"


def cache_dir() -> Path:
    """Where converted bases and fingerprints are kept: `PEFTRUN_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("PEFTRUN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "peftrun"


def no_file(path: str) -> str:
    """What is said of a path where there is no file."""
    return "is a folder" if Path(path).expanduser().is_dir() else "there is no such file"


def list_group_files(group: str, *dirs: Path) -> Iterator[Path]:
    """Every YAML file of a config group, sorted by name; `dirs` are team folders, which win over ours."""
    seen: set[str] = set()
    for folder in (*dirs, config_dir()):
        for path in sorted((folder / group).glob("*.yaml")):
            if path.name not in seen:
                seen.add(path.name)
                yield path


def list_group_options(group: str, *dirs: Path) -> list[str]:
    """Names that may stand after `group=`."""
    return sorted(path.stem for path in list_group_files(group, *dirs))


def read_first_sentence(path: Path) -> str:
    """What the file says it is: its first line that is a comment in words."""
    comments = (line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return next((line for line in comments if not line.startswith("@package")), "")
