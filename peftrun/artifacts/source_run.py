"""Checks the run that action=replay runs again, and hashes a run's input adapters and files for its record."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, function_files, hub_adapters, records, remote_files
from peftrun.artifacts.run_layout import CONFIG, FUNCTIONS, RECORD
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ArtifactError, ConfigError, PeftrunError
from peftrun.io import atomic_files

MAX_FUNCTION_FILE = 2**20  # bytes of a Python file of which a run keeps a copy
REPLAYABLE_ACTIONS = (
    "train",
    "save",
    "reload",
    "evaluate",
    "generate",
    "merge",
    "unmerge",
    "combine",
    "extract",
    "diff",
)


def check_source_run(action: Any) -> Iterator[str]:
    """One line for each reason why the run of `action.run` cannot be replayed, or its environment checked."""
    if action.run is None:
        yield "action.run is not set; action=replay needs a run folder: type run=outputs/train/RUN"
        return
    key, folder = f"action.run={action.run}", Path(action.run).expanduser()
    missing = [name for name in (RECORD, CONFIG) if not (folder / name).is_file()]
    if missing:
        yield f"{key}: is no run folder (no {missing[0]}); name one below outputs, or a cell of a sweep"
        return
    try:
        record = records.read_record(folder)
    except ArtifactError as error:
        yield str(error)
        return
    name, status = record.get("action"), record.get("status")
    if name not in REPLAYABLE_ACTIONS:
        yield f"{key}: is a run of action={name}, which leaves nothing to compare; name one of {', '.join(REPLAYABLE_ACTIONS)}"
    elif status != "completed" and not action.check_only:  # with check_only nothing is run again
        reason = f" ({str(record['error']).splitlines()[0]})" if record.get("error") else ""
        yield (
            f"{key}: this run is '{status}'{reason}, so there is nothing to compare; name a completed one, "
            "or type check_only=true to see what has drifted since"
        )


def hash_input_adapters(adapters: dict[str, str]) -> dict[str, str]:
    """Name → sha256 of the weights of every input adapter of a run."""
    hashes = {}
    for name, path in adapters.items():
        try:
            hashes[name] = atomic_files.hash_file(adapter_folder.resolve_adapter(path, name).weights)
        except (PeftrunError, OSError):  # reported when the adapter is loaded
            continue
    return hashes


def describe_hub_adapters(adapters: dict[str, str]) -> dict[str, Any]:
    """`hub_adapters` for a run's record: name → id, requested revision and commit of every adapter from the Hub; empty if there are none."""
    sources = {name: hub for name, path in adapters.items() if (hub := hub_adapters.parse_hub_adapter(path))}
    facts = {name: {"id": hub.place, "revision": hub.revision, "commit": hub.commit} for name, hub in sources.items()}
    return {"hub_adapters": facts} if facts else {}


def hash_input_files(spec: RunSpec) -> dict[str, str]:
    """Key → sha256 of each input file of a run that goes into prompts unchanged; `KEY=FILE` → that of each Python file whose functions it calls."""
    values = {"task.tools": spec.task.tools, "action.prompts_file": getattr(spec.action, "prompts_file", None)}
    files = function_files.list_files(spec.task) if function_files.are_called(spec.action) else {}
    hashes = {key: atomic_files.hash_file(path) for key, path in files.items() if path.is_file()}
    for key, path in values.items():
        with suppress(PeftrunError, OSError):  # reported when the file is read
            hashes |= {key: atomic_files.hash_file(remote_files.locate_file(path, f"{key}={path}"))} if path else {}
    return hashes


def copy_function_files(spec: RunSpec, out_dir: Path) -> None:
    """Copies the Python files whose functions the run calls into its folder, so that it can be repeated if they change. Large ones are left out."""
    named = function_files.list_files(spec.task).values() if function_files.are_called(spec.action) else ()
    files = {file for file in named if file.is_file() and file.stat().st_size <= MAX_FUNCTION_FILE}
    shutil.rmtree(out_dir / FUNCTIONS, ignore_errors=True)  # of a cell that could not be trained with others
    if not files:
        return
    with atomic_files.create_folder(out_dir / FUNCTIONS) as folder:
        for file in sorted(files):
            is_first = not (folder / file.name).exists()
            name = file.name if is_first else f"{file.stem}-{atomic_files.hash_file(file)[:8]}{file.suffix}"
            shutil.copyfile(file, folder / name)


def check_function_files(record: dict[str, Any], spec: RunSpec, run: Path) -> None:
    """Raises: ConfigError: a Python file of the recorded run has changed: other code would run in its name."""
    recorded = record.get("files") or {}
    lines = [
        f"action.run={run}: the run was made with another {name} ({recorded[name][:12]} → {digest[:12]}); restore it from {run / FUNCTIONS}, "
        f"or type {name.partition('=')[0]} with the function to use"
        for name, digest in hash_input_files(spec).items()
        if recorded.get(name, digest) != digest and name.partition("=")[2]
    ]
    if lines:
        raise ConfigError(*lines)
