"""The overrides and search path of a run, in Hydra's own files in its folder, which a run from Python writes too. Light."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, adapter_origin, hub_adapters
from peftrun.config import old_overrides, override_syntax
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

HYDRA_DIR, OVERRIDES_FILE, HYDRA_FILE = ".hydra", "overrides.yaml", "hydra.yaml"
BUILTIN_PROVIDERS = ("hydra", "main", "schema", "peftrun.configs")  # in the search path of every run

SWEEP = "sweep.json"  # in the folder above a cell's
CONFIG_DIR = "--config-dir"
ROW_GROUPS = ("experiment", "task", "params")  # groups that determine the rows
SHARED_GROUPS = (*ROW_GROUPS, "model", "device", "allow_base_mismatch")  # that a following action needs unchanged
PROCESS_KEYS = tuple(
    f"device.{key}"
    for key in (
        "strategy",
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "deepspeed_config",
    )
)


def add_shared_overrides(
    command: str, typed: Sequence[str], places: Sequence[str] = (), spec: RunSpec | None = None
) -> str:
    """The command with the overrides of model, task and device from `typed`, unless it sets these groups itself, or its adapter says the same.

    Args: places: the run's search path, as `read_search_path` returns it. spec: of the run.
    """
    program, _, arguments = command.partition(" ")
    if program != "peftrun":
        return command
    words = shlex.split(arguments)
    groups = {_override_group(word) for word in words}
    for word in words:
        path = word.partition("=")[2]
        if not word.startswith("adapter="):
            continue
        if run := adapter_folder.find_adapter_run(path):
            groups |= _list_own_groups(run, typed)
        elif spec:
            groups |= _list_stated_groups(path, spec)
    added = [text for text in typed if _override_group(text) in SHARED_GROUPS and _override_group(text) not in groups]
    if not added:
        return command
    start = override_syntax.join_overrides([program, *override_syntax.format_search_path_flags(places)])
    return f"{start} {arguments} {override_syntax.join_overrides(added)}"


def _list_own_groups(run: Path, typed: Sequence[str]) -> set[str]:
    """Groups that need not be typed with an adapter of this run, since they default to its own: those without other overrides in `typed`."""
    try:
        own = read_typed_overrides(run)
    except ArtifactError:  # a damaged file: what this command differs in is not known
        return {*ROW_GROUPS, "model"}
    return {*ROW_GROUPS, "model"} - {_override_group(text) for text in typed if text not in own}


def _list_stated_groups(path: str, spec: RunSpec) -> set[str]:
    """Groups that need not be typed with an adapter outside a run, since its files say the same as the run's `spec`."""
    pinned = {hub_adapters.format_source(source): source for source in spec.adapter.values()}
    origin = adapter_origin.read_origin(pinned.get(path, path), "default")
    stated = {
        group for group, known in (origin.groups if origin else {}).items() if known == asdict(getattr(spec, group))
    }
    rows = {*ROW_GROUPS} if "task" in stated else set()
    return (stated | rows) - ({"experiment"} if "model" not in stated else set())


def select_row_overrides(typed: Iterable[str]) -> list[str]:
    """The overrides that determine the rows and their form."""
    return [text for text in typed if _override_group(text) in ROW_GROUPS]


def _override_group(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition(".")[0]


def strip_process_overrides(typed: Sequence[str]) -> list[str]:
    """The overrides for a following action in one process: those of distributed training replaced by device=auto."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in typed}
    return [*(text for text, key in keys.items() if key != "device" and key not in PROCESS_KEYS), "device=auto"]


def read_overrides(run: Path) -> list[str]:
    """A run's overrides in order, keys in full and in today's names; empty if there were none, or the run was not composed by Hydra."""
    file = run / HYDRA_DIR / OVERRIDES_FILE
    return old_overrides.rename_recorded([str(text) for text in config.read_list(file)]) if file.is_file() else []


def read_typed_overrides(run: Path) -> list[str]:
    """The same; for a cell of a sweep those of its own command."""
    words = [word for word in _read_cell_command(run) if "=" in word and not word.startswith("-")]
    return read_overrides(run) or old_overrides.rename_recorded(words)


def read_config_places(run: Path) -> list[str]:
    """A run's search path, as `read_search_path` returns it; for a cell of a sweep from its own command."""
    words = _read_cell_command(run)
    folders = words[words.index(CONFIG_DIR) + 1 :][:1] if CONFIG_DIR in words else []
    return read_search_path(run) or [f"file://{folder}" for folder in folders]


def _read_cell_command(run: Path) -> list[str]:
    """Arguments of a cell's own command, from its sweep's summary; [] if the run is no cell."""
    with suppress(ArtifactError, KeyError, StopIteration, TypeError, ValueError):
        cells = atomic_files.read_json(run.parent / SWEEP)["cells"]
        return shlex.split(next(str(cell["command"]) for cell in cells if cell["folder"] == run.name))[1:]
    return []


def read_adapter_overrides(path: str) -> tuple[list[str], list[str]]:
    """Overrides and search path of the run that made the adapter; empty if it is in no run folder."""
    run = adapter_folder.find_adapter_run(path)
    return (read_typed_overrides(run), read_config_places(run)) if run else ([], [])


def read_search_path(run: Path) -> list[str]:
    """A run's search path besides peftrun's own configs: `file://FOLDER` or `pkg://PACKAGE`, in order of precedence."""
    file = run / HYDRA_DIR / HYDRA_FILE
    if not file.is_file():
        return []
    return format_config_sources(config.read_values(file)["hydra"]["runtime"]["config_sources"])


def format_config_sources(sources: Iterable[Any]) -> list[str]:
    """The same from Hydra's `runtime.config_sources`."""
    return [
        f"{source['schema']}://{source['path']}"
        for source in sources
        if source["provider"] not in BUILTIN_PROVIDERS and source["path"]
    ]


def write_overrides(run: Path, typed: list[str], hydra: dict[str, Any]) -> None:
    """Writes overrides.yaml and hydra.yaml as Hydra does. `hydra`: the node `hydra` of the composed config."""
    atomic_files.write_text(run / HYDRA_DIR / OVERRIDES_FILE, config.values_to_yaml(typed))
    atomic_files.write_text(run / HYDRA_DIR / HYDRA_FILE, config.values_to_yaml({"hydra": hydra}))
