"""What a run folder's composition was asked for: Hydra's own files in it, which a run from Python leaves too. Light."""

from pathlib import Path
from typing import Any

from peftrun import artifacts, config

FOLDER, OVERRIDES, OWN = ".hydra", "overrides.yaml", "hydra.yaml"
OURS = ("hydra", "main", "schema", "peftrun.configs")  # providers of a search path that every run has


def overrides(run: Path) -> list[str]:
    """What was typed, every key in full, in its order; empty where nothing was, or where a run was not composed."""
    file = run / FOLDER / OVERRIDES
    return [str(text) for text in config.read_list(file)] if file.is_file() else []


def search_path(run: Path) -> list[str]:
    """Where options were looked for beside peftrun's own: `file://FOLDER` or `pkg://PACKAGE`, those that win first."""
    file = run / FOLDER / OWN
    if not file.is_file():
        return []
    sources: list[dict[str, Any]] = config.read_values(file)["hydra"]["runtime"]["config_sources"]
    return [f"{one['schema']}://{one['path']}" for one in sources if one["provider"] not in OURS and one["path"]]


def leave(run: Path, typed: list[str], own: dict[str, Any]) -> None:
    """Writes them as Hydra would. `own`: Hydra's part of the composed configuration."""
    artifacts.write_text(run / FOLDER / OVERRIDES, config.values_to_yaml(typed))
    artifacts.write_text(run / FOLDER / OWN, config.values_to_yaml({"hydra": own}))
