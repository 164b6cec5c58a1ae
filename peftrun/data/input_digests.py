"""Digests of a training's inputs: the files of its rows, tools, own rewards and metrics, its base model, and the adapter that it continues. Light;
digests of files are cached."""

import hashlib
import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from peftrun.artifacts import base_location, function_files, remote_files, source_run, token_settings
from peftrun.config.schema.run import RunSpec
from peftrun.errors import DataError, PeftrunError

ROWS = "rows"  # digest of the loaded rows, known only after loading


def compute_digests(spec: RunSpec) -> dict[str, str]:
    """Name of an input, as shown in messages → digest, for every input that is a readable file, here or under a URL."""
    sources, fingerprint = import_module("peftrun.data.sources"), import_module("peftrun.artifacts.fingerprint")
    task, folder, files = spec.task, base_location.find_base_dir(spec.model), dict[str, Path]()
    if task.data.source != "hub":
        for source in sources.list_sources(task.data):
            with suppress(DataError):  # loading the rows raises the error with its reason
                files[source.label] = sources.resolve_source_file(task.data, source)
    if task.tools is not None:
        with suppress(DataError):
            option = f"task.tools={task.tools}"
            files[option] = remote_files.locate_file(task.tools, option)
    files |= function_files.list_files(task)
    digests = {label: fingerprint.hash_file_cached(file) for label, file in files.items() if file.is_file()}
    digests |= {
        f"adapter={spec.adapter[name]}": digest for name, digest in source_run.hash_input_adapters(spec.adapter).items()
    }
    if folder is not None:
        with suppress(PeftrunError, OSError):  # loading the model raises the error with its reason
            parts = fingerprint.fingerprint_model(folder).with_arguments(spec.model.arguments).as_dict()
            digests |= {f"the base's {part.replace('_', ' ')}": digest for part, digest in parts.items()}
    return digests | _digest_tokens(spec)


def _digest_tokens(spec: RunSpec) -> dict[str, str]:
    """The same for the chat template and the tokens of config group `model`: a file or a named template may change its content."""
    with suppress(PeftrunError):
        if settings := token_settings.read_token_settings(spec.model):
            values = json.dumps(settings.describe() | {"chat_template": settings.chat_template})
            return {"model.chat_template and tokens": hashlib.sha256(values.encode()).hexdigest()}
    return {}


def list_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The inputs whose digest has changed, with both digests; inputs that only one side has are left out."""
    names = [name for name in then if name in now and then[name] != now[name]]
    if len(names) > 1 and ROWS in names:
        names.remove(ROWS)  # a consequence of the changed files
    return [f"{name} ({then[name][:12]} → {now[name][:12]})" for name in names]
