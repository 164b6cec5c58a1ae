"""Digests of a training's inputs: the files of its rows and tools, and its base model. Light; digests of files are cached."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

from peftrun.artifacts import base_location
from peftrun.config.schema.run import RunSpec
from peftrun.errors import PeftrunError

ROWS = "rows"  # digest of the loaded rows, known only after loading


def compute_digests(spec: RunSpec) -> dict[str, str]:
    """Name of an input, as shown in messages → digest, for every input that is a readable local file."""
    sources, fingerprint = import_module("peftrun.data.sources"), import_module("peftrun.artifacts.fingerprint")
    task, folder, files = spec.task, base_location.find_base_dir(spec.model), dict[str, Path]()
    if task.data.source != "hub":
        for source in sources.list_sources(task.data):
            files[source.label] = sources.resolve_source_file(task.data, source.path)
    if task.tools is not None:
        files[f"task.tools={task.tools}"] = Path(task.tools).expanduser()
    digests = {label: fingerprint.hash_file_cached(file) for label, file in files.items() if file.is_file()}
    if folder is not None:
        with suppress(PeftrunError, OSError):  # loading the model raises the error with its reason
            parts = fingerprint.fingerprint_model(folder).with_arguments(spec.model.arguments).as_dict()
            digests |= {f"the base's {part.replace('_', ' ')}": digest for part, digest in parts.items()}
    return digests


def list_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The inputs whose digest has changed, with both digests; inputs that only one side has are left out."""
    names = [name for name in then if name in now and then[name] != now[name]]
    if len(names) > 1 and ROWS in names:
        names.remove(ROWS)  # a consequence of the changed files
    return [f"{name} ({then[name][:12]} → {now[name][:12]})" for name in names]
