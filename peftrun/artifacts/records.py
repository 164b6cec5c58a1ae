"""record.json of a run and peftrun.json of an adapter, read under today's names of their keys. Light."""

from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import PEFTRUN_METADATA, RECORD
from peftrun.io.atomic_files import read_json

# Earlier name → today's, all changed in 0.1.0.
RENAMED = {
    "given": "input_adapters",
    "computing": "numerics",
    "together": "joint_training",
    "unread": "unused_keys",
    "learned": "trained_on",
    "fresh": "untrained",
}
RENAMED_OF_BASE = {"held_in": "quantization"}


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run folder. Raises: ArtifactError: it is missing or not readable."""
    return rename_keys(read_json(run / RECORD))


def read_metadata(folder: Path) -> dict[str, Any]:
    """The peftrun.json of an adapter or a model folder. Raises: ArtifactError: it is missing or not readable."""
    return rename_keys(read_json(folder / PEFTRUN_METADATA))


def rename_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a record.json or peftrun.json under today's names; other values of the same name, deeper, stay."""
    renamed = {RENAMED.get(key, key): value for key, value in values.items()}
    if isinstance(base := renamed.get("base"), dict):
        renamed["base"] = {RENAMED_OF_BASE.get(key, key): value for key, value in base.items()}
    return renamed
