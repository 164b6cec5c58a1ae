"""Digests of a training's inputs: the files of its rows and tools, and its base model. Light; digests of files are cached."""

from importlib import import_module
from pathlib import Path

from peftrun.artifacts import base_location
from peftrun.config.schema.run import ModelSpec, RunSpec, TaskSpec
from peftrun.errors import PeftrunError

ROWS = "rows"  # digest of the loaded rows, known only after loading


def compute_digests(spec: RunSpec) -> dict[str, str]:
    """Name of an input, as shown in messages → digest, for every input that is a readable local file."""
    return _digest_data(spec.task) | _digest_base_model(spec.model)


def list_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The inputs whose digest has changed, with both digests; inputs that only one side has are left out."""
    names = [name for name in then if name in now and then[name] != now[name]]
    if len(names) > 1 and ROWS in names:
        names.remove(ROWS)  # a consequence of the changed files
    return [f"{name} ({then[name][:12]} → {now[name][:12]})" for name in names]


def _digest_data(task: TaskSpec) -> dict[str, str]:
    sources, fingerprint = import_module("peftrun.data.sources"), import_module("peftrun.artifacts.fingerprint")
    files: dict[str, Path] = {}
    if task.data.source != "hub":
        for source in sources.list_sources(task.data):
            files[source.label] = sources.resolve_source_file(task.data, source.path)
    if task.tools is not None:
        files[f"task.tools={task.tools}"] = Path(task.tools).expanduser()
    return {label: fingerprint.hash_file_cached(file) for label, file in files.items() if file.is_file()}


def _digest_base_model(model: ModelSpec) -> dict[str, str]:
    folder = base_location.find_base_dir(model)
    if folder is None:
        return {}
    try:
        parts = import_module("peftrun.artifacts.fingerprint").fingerprint_model(folder).as_dict()
    except (PeftrunError, OSError):  # loading the model raises the error with its reason
        return {}
    return {f"the base's {part.replace('_', ' ')}": digest for part, digest in parts.items()}
