"""What a run folder's composition was asked for: Hydra's own files in it, which a run from Python leaves too. Light."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

HYDRA_DIR, OVERRIDES_FILE, HYDRA_FILE = ".hydra", "overrides.yaml", "hydra.yaml"
BUILTIN_PROVIDERS = ("hydra", "main", "schema", "peftrun.configs")  # providers of a search path that every run has

SWEEP = "sweep.json"  # in the folder above a cell's
CONFIG_DIR = "--config-dir"
ROW_GROUPS = ("experiment", "task", "slots")  # by which the same rows are asked for
SHARED_GROUPS = (*ROW_GROUPS, "model", "device", "allow_base_mismatch")  # what the next action needs as this one did
PROCESS_KEYS = tuple(
    f"device.{key}"
    for key in ("strategy", "processes", "machines", "machine_rank", "main_address", "main_port", "deepspeed_config")
)


def add_shared_overrides(command: str, typed: Sequence[str], places: Sequence[str] = ()) -> str:
    """The command with what was typed for model, task and device, where it says nothing of these itself.

    Args: places: where options were looked for, as `search_path` gives it.
    """
    program, _, rest = command.partition(" ")
    if program != "peftrun":  # another program's
        return command
    words = shlex.split(rest)
    said = {_override_group(word) for word in words}
    if any(adapter_folder.find_adapter_run(word.partition("=")[2]) for word in words if word.startswith("adapter=")):
        said |= {*ROW_GROUPS, "model"}  # are those of the adapter's run
    more = [text for text in typed if _override_group(text) in SHARED_GROUPS and _override_group(text) not in said]
    if not more:
        return command
    return " ".join(
        [
            override_syntax.join_overrides([program, *override_syntax.format_search_path_flags(places)]),
            rest,
            override_syntax.join_overrides(more),
        ]
    )


def select_row_overrides(typed: Iterable[str]) -> list[str]:
    """What of it says which rows are learned or measured, and how they are spelled out."""
    return [text for text in typed if _override_group(text) in ROW_GROUPS]


def _override_group(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition(".")[0]


def strip_process_overrides(typed: Sequence[str]) -> list[str]:
    """What was typed, without how it was spread over processes: what comes next runs in one."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in typed}
    return [*(text for text, key in keys.items() if key != "device" and key not in PROCESS_KEYS), "device=auto"]


def read_overrides(run: Path) -> list[str]:
    """What was typed, every key in full, in its order; empty where nothing was, or where a run was not composed."""
    file = run / HYDRA_DIR / OVERRIDES_FILE
    return [str(text) for text in config.read_list(file)] if file.is_file() else []


def read_typed_overrides(run: Path) -> list[str]:
    """The same; of a cell of a sweep what its own command says."""
    return read_overrides(run) or [word for word in _read_cell_command(run) if "=" in word and not word.startswith("-")]


def read_config_places(run: Path) -> list[str]:
    """As `search_path`, of a cell too."""
    words = _read_cell_command(run)
    named = words[words.index(CONFIG_DIR) + 1 :][:1] if CONFIG_DIR in words else []
    return read_search_path(run) or [f"file://{folder}" for folder in named]


def _read_cell_command(run: Path) -> list[str]:
    """Words of a cell's own command, from its sweep's summary; none where the run is no cell."""
    with suppress(ArtifactError, KeyError, StopIteration, TypeError, ValueError):
        cells = atomic_files.read_json(run.parent / SWEEP)["cells"]
        return shlex.split(next(str(cell["command"]) for cell in cells if cell["folder"] == run.name))[1:]
    return []


def read_adapter_overrides(path: str) -> tuple[list[str], list[str]]:
    """What was typed, and the places, of the run that made the adapter; nothing where none is known."""
    run = adapter_folder.find_adapter_run(path)
    return (read_typed_overrides(run), read_config_places(run)) if run else ([], [])


def read_search_path(run: Path) -> list[str]:
    """Where options were looked for beside peftrun's own: `file://FOLDER` or `pkg://PACKAGE`, those that win first."""
    file = run / HYDRA_DIR / HYDRA_FILE
    if not file.is_file():
        return []
    return format_config_sources(config.read_values(file)["hydra"]["runtime"]["config_sources"])


def format_config_sources(sources: Iterable[Any]) -> list[str]:
    """The same of Hydra's list of sources."""
    return [
        f"{one['schema']}://{one['path']}"
        for one in sources
        if one["provider"] not in BUILTIN_PROVIDERS and one["path"]
    ]


def write_overrides(run: Path, typed: list[str], own: dict[str, Any]) -> None:
    """Writes them as Hydra would. `own`: Hydra's part of the composed configuration."""
    atomic_files.write_text(run / HYDRA_DIR / OVERRIDES_FILE, config.values_to_yaml(typed))
    atomic_files.write_text(run / HYDRA_DIR / HYDRA_FILE, config.values_to_yaml({"hydra": own}))
