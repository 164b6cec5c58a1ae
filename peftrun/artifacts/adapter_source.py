"""What is exported: an adapter or a full model, the run that made it, and what its record says. Light."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, CONFIG, MERGED, MODEL, PEFTRUN_METADATA, RECORD
from peftrun.errors import ArtifactError, ModelError
from peftrun.io import atomic_files

MODEL_DIRS = (MODEL, MERGED)  # what a run without an adapter leaves
EXPORTABLE_STATUSES = ("completed", "stopped")  # stopped: a sweep has ended it early, and its adapter is whole
RESULT_DIRS = (ADAPTER, *MODEL_DIRS)
MAX_PARENTS = 2  # a run folder is at most so far above: RUN/adapter/NAME


@dataclass(frozen=True)
class ExportSource:
    """What is exported.

    Attributes:
        name: of the adapter.
        folder: with its weights and its config.
        is_adapter: False for a full model.
        config: adapter_config.json, or config.json of a full model.
        facts: peftrun.json; empty where it was made elsewhere.
        run: the run folder that made it; None where there is none.
        record: its record; empty where there is none.
    """

    name: str
    folder: Path
    is_adapter: bool
    config: dict[str, Any]
    facts: dict[str, Any]
    run: Path | None
    record: dict[str, Any]

    def base(self) -> dict[str, Any]:
        """Name, revision and fingerprint of its base, as noted; empty where nothing was."""
        found = (self.facts.get("merged") or self.facts).get("base") or self.record.get("base") or {}
        return found if isinstance(found, dict) else {}

    def fingerprint(self) -> dict[str, Any]:
        """Of its base; empty where it was not noted."""
        found = self.base().get("fingerprint") or {}
        return found if isinstance(found, dict) else {}


def open_adapter_source(path: str, name: str) -> ExportSource:
    """The adapter that `path` means, by the name it was given.

    Raises: AdapterError: there is none, or it is broken. ArtifactError: its run has not ended well.
    """
    folder = adapter_folder.resolve_adapter_dir(path, name)
    key = f"adapter={path}" if name == "default" else f"adapter.{name}={path}"
    config = atomic_files.read_json(folder / ADAPTER_CONFIG)
    run = _find_source_run(folder)
    return ExportSource(
        name, folder, True, config, adapter_folder.read_peftrun_metadata(folder) or {}, run, _read_run_record(run, key)
    )


def open_model_source(path: str) -> ExportSource:
    """The full model that `path` means: a model folder, or the one in a run folder.

    Raises: ModelError: there is none. ArtifactError: its run has not ended well.
    """
    key, given = f"action.model_dir={path}", Path(path).expanduser()
    inside = [given / name for name in MODEL_DIRS if (given / name).is_dir()]
    folder = inside[0] if inside else given
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{key}: holds no model in safetensors; name a run folder of lora=none or action=merge, or a model folder"
        )
    run = _find_source_run(folder)
    note = folder / PEFTRUN_METADATA
    facts = atomic_files.read_json(note) if note.is_file() else {}
    return ExportSource(
        "default", folder, False, atomic_files.read_json(folder / "config.json"), facts, run, _read_run_record(run, key)
    )


def _find_source_run(folder: Path) -> Path | None:
    """The run folder whose result this is; a checkpoint in it, or another's export, is not what its record is about."""
    inner = folder.resolve()
    for one in inner.parents[:MAX_PARENTS]:
        if inner.relative_to(one).parts[0] in RESULT_DIRS and all((one / name).is_file() for name in (RECORD, CONFIG)):
            return one
    return None


def _read_run_record(run: Path | None, key: str) -> dict[str, Any]:
    if run is None:
        return {}
    record = atomic_files.read_json(run / RECORD)
    if record.get("status") not in EXPORTABLE_STATUSES:
        reason = f" ({str(record['error']).splitlines()[0]})" if record.get("error") else ""
        raise ArtifactError(
            f"{key}: this run is '{record.get('status')}'{reason}, and only what a completed one made is exported; "
            f"finish it with action.resume={run}, or name another run"
        )
    return record
