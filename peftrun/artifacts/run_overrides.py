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

FOLDER, OVERRIDES, OWN = ".hydra", "overrides.yaml", "hydra.yaml"
OURS = ("hydra", "main", "schema", "peftrun.configs")  # providers of a search path that every run has

SWEEP = "sweep.json"  # in the folder above a cell's
CONFIG_DIR = "--config-dir"
ROWS = ("experiment", "task", "slots")  # by which the same rows are asked for
SHARED = (*ROWS, "model", "device", "allow_base_mismatch")  # what the next action needs as this one did
SPREAD = tuple(
    f"device.{key}"
    for key in ("strategy", "processes", "machines", "machine_rank", "main_address", "main_port", "deepspeed_config")
)


def on_the_same(command: str, typed: Sequence[str], places: Sequence[str] = ()) -> str:
    """The command with what was typed for model, task and device, where it says nothing of these itself.

    Args: places: where options were looked for, as `search_path` gives it.
    """
    program, _, rest = command.partition(" ")
    if program != "peftrun":  # another program's
        return command
    words = shlex.split(rest)
    said = {_group(word) for word in words}
    if any(adapter_folder.run_of(word.partition("=")[2]) for word in words if word.startswith("adapter=")):
        said |= {*ROWS, "model"}  # are those of the adapter's run
    more = [text for text in typed if _group(text) in SHARED and _group(text) not in said]
    if not more:
        return command
    return " ".join(
        [override_syntax.words([program, *override_syntax.team(places)]), rest, override_syntax.words(more)]
    )


def of_rows(typed: Iterable[str]) -> list[str]:
    """What of it says which rows are learned or measured, and how they are spelled out."""
    return [text for text in typed if _group(text) in ROWS]


def _group(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition(".")[0]


def in_one_process(typed: Sequence[str]) -> list[str]:
    """What was typed, without how it was spread over processes: what comes next runs in one."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in typed}
    return [*(text for text, key in keys.items() if key != "device" and key not in SPREAD), "device=auto"]


def overrides(run: Path) -> list[str]:
    """What was typed, every key in full, in its order; empty where nothing was, or where a run was not composed."""
    file = run / FOLDER / OVERRIDES
    return [str(text) for text in config.read_list(file)] if file.is_file() else []


def typed(run: Path) -> list[str]:
    """The same; of a cell of a sweep what its own command says."""
    return overrides(run) or [word for word in _of_cell(run) if "=" in word and not word.startswith("-")]


def places(run: Path) -> list[str]:
    """As `search_path`, of a cell too."""
    words = _of_cell(run)
    named = words[words.index(CONFIG_DIR) + 1 :][:1] if CONFIG_DIR in words else []
    return search_path(run) or [f"file://{folder}" for folder in named]


def _of_cell(run: Path) -> list[str]:
    """Words of a cell's own command, from its sweep's summary; none where the run is no cell."""
    with suppress(ArtifactError, KeyError, StopIteration, TypeError, ValueError):
        cells = atomic_files.read_json(run.parent / SWEEP)["cells"]
        return shlex.split(next(str(cell["command"]) for cell in cells if cell["folder"] == run.name))[1:]
    return []


def of_adapter(path: str) -> tuple[list[str], list[str]]:
    """What was typed, and the places, of the run that made the adapter; nothing where none is known."""
    run = adapter_folder.run_of(path)
    return (typed(run), places(run)) if run else ([], [])


def search_path(run: Path) -> list[str]:
    """Where options were looked for beside peftrun's own: `file://FOLDER` or `pkg://PACKAGE`, those that win first."""
    file = run / FOLDER / OWN
    if not file.is_file():
        return []
    return places_of(config.read_values(file)["hydra"]["runtime"]["config_sources"])


def places_of(sources: Iterable[Any]) -> list[str]:
    """The same of Hydra's list of sources."""
    return [f"{one['schema']}://{one['path']}" for one in sources if one["provider"] not in OURS and one["path"]]


def leave(run: Path, typed: list[str], own: dict[str, Any]) -> None:
    """Writes them as Hydra would. `own`: Hydra's part of the composed configuration."""
    atomic_files.write_text(run / FOLDER / OVERRIDES, config.values_to_yaml(typed))
    atomic_files.write_text(run / FOLDER / OWN, config.values_to_yaml({"hydra": own}))
