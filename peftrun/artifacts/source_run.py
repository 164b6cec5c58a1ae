"""Checks the run that action=replay runs again, and hashes a run's input adapters and files for its record."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder, records, remote_files
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ArtifactError, PeftrunError
from peftrun.io import atomic_files

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


def hash_input_files(spec: RunSpec) -> dict[str, str]:
    """Key → sha256 of each input file of a run that goes into prompts unchanged."""
    values = {"task.tools": spec.task.tools, "action.prompts_file": getattr(spec.action, "prompts_file", None)}
    hashes = dict[str, str]()
    for key, path in values.items():
        with suppress(PeftrunError, OSError):  # reported when the file is read
            hashes |= {key: atomic_files.hash_file(remote_files.locate_file(path, f"{key}={path}"))} if path else {}
    return hashes
