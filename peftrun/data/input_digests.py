"""What a training is made from, by content: the files of its rows and tools, and its base. Light, and fast once each file was read."""

from importlib import import_module
from pathlib import Path

from peftrun.artifacts import base_files
from peftrun.config.schema.run import ModelSpec, RunSpec, TaskSpec
from peftrun.errors import PeftrunError

ROWS = "rows"  # as they were made of the files; known only where they are loaded


def compute_digests(spec: RunSpec) -> dict[str, str]:
    """Name, as people know it → digest, of everything that is a file here and can be read."""
    return _digest_data(spec.task) | _digest_base_model(spec.model)


def list_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of what is another than it was, and how; what either side does not tell of is left out."""
    names = [name for name in then if name in now and then[name] != now[name]]
    if len(names) > 1 and ROWS in names:
        names.remove(ROWS)  # which follow from the files
    return [f"{name} ({then[name][:12]} → {now[name][:12]})" for name in names]


def _digest_data(task: TaskSpec) -> dict[str, str]:
    sources, fingerprint = import_module("peftrun.data.sources"), import_module("peftrun.artifacts.fingerprint")
    files: dict[str, Path] = {}
    if task.data.source != "hub":
        files = {one.label: sources.resolve_source_file(task.data, one.path) for one in sources.list_sources(task.data)}
    if task.tools is not None:
        files[f"task.tools={task.tools}"] = Path(task.tools).expanduser()
    return {told: fingerprint.hash_file_cached(file) for told, file in files.items() if file.is_file()}


def _digest_base_model(model: ModelSpec) -> dict[str, str]:
    folder = base_files.find_base_dir(model)
    if folder is None:
        return {}
    try:
        parts = import_module("peftrun.artifacts.fingerprint").fingerprint_model(folder).as_dict()
    except (PeftrunError, OSError):  # whoever loads it says what is wrong
        return {}
    return {f"the base's {part.replace('_', ' ')}": digest for part, digest in parts.items()}
