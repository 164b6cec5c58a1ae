"""What a run folder's composition was asked for: Hydra's own files in it, which a run from Python leaves too. Light."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun import artifacts, config

FOLDER, OVERRIDES, OWN = ".hydra", "overrides.yaml", "hydra.yaml"
OURS = ("hydra", "main", "schema", "peftrun.configs")  # providers of a search path that every run has

SHARED = ("experiment", "model", "task", "device", "allow_base_mismatch")  # what the next action needs as this one did
SPREAD = tuple(
    f"device.{key}"
    for key in ("strategy", "processes", "machines", "machine_rank", "main_address", "main_port", "deepspeed_config")
)


def on_the_same(command: str, typed: Sequence[str]) -> str:
    """The command with what was typed for model, task and device, where it says nothing of these itself."""
    if not command.startswith("peftrun "):  # another program's
        return command
    groups = {text: text.lstrip("+~").partition("=")[0].partition(".")[0] for text in typed}
    more = [text for text, group in groups.items() if group in SHARED and f" {group}" not in command]
    return " ".join([command, *map(shlex.quote, more)])


def in_one_process(typed: Sequence[str]) -> list[str]:
    """What was typed, without how it was spread over processes: what comes next runs in one."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in typed}
    return [*(text for text, key in keys.items() if key != "device" and key not in SPREAD), "device=auto"]


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
