"""The source of an export: an adapter or a full model, the run that made it, and its record. Light."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import records
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import ADAPTER, CONFIG, MERGED, MODEL, PEFTRUN_METADATA, RECORD
from peftrun.errors import ArtifactError, ModelError
from peftrun.io import atomic_files

MODEL_DIRS = (MODEL, MERGED)  # results of lora=none and action=merge
EXPORTABLE_STATUSES = ("completed", "stopped")  # stopped: ended early by a sweep, with a complete adapter
RESULT_DIRS = (ADAPTER, *MODEL_DIRS)
MAX_PARENTS = 2  # levels from an adapter up to its run folder: RUN/adapter/NAME


@dataclass(frozen=True)
class ExportSource:
    """An adapter or full model to export.

    Attributes:
        name: the adapter's.
        folder: holds its weights and its config.
        is_adapter: False for a full model.
        config: adapter_config.json, or config.json of a full model.
        facts: peftrun.json; empty if peftrun did not make it.
        run: the run folder that made it, or None.
        record: that run's record.json; empty if there is none.
    """

    name: str
    folder: Path
    is_adapter: bool
    config: dict[str, Any]
    facts: dict[str, Any]
    run: Path | None
    record: dict[str, Any]

    def base(self) -> dict[str, Any]:
        """Recorded name, revision and fingerprint of its base model; empty if none are."""
        base = (self.facts.get("merged") or self.facts).get("base") or self.record.get("base") or {}
        return base if isinstance(base, dict) else {}

    def fingerprint(self) -> dict[str, Any]:
        """Recorded fingerprint of its base model; empty if there is none."""
        digests = self.base().get("fingerprint") or {}
        return digests if isinstance(digests, dict) else {}


def open_adapter_source(adapter: AdapterRef) -> ExportSource:
    """The adapter with its run and that run's record. Raises: ArtifactError: its run did not complete."""
    run = _find_source_run(adapter.folder)
    record = _read_run_record(run, adapter.option)
    return ExportSource(adapter.name, adapter.folder, True, adapter.config, adapter.metadata or {}, run, record)


def open_model_source(path: str) -> ExportSource:
    """The full model at `path`: a model folder, or the one in a run folder.

    Raises: ModelError: there is none. ArtifactError: its run did not complete.
    """
    key, folder = f"action.model_dir={path}", Path(path).expanduser()
    folder = next((folder / name for name in MODEL_DIRS if (folder / name).is_dir()), folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{key}: holds no model in safetensors; name a run folder of lora=none or action=merge, or a model folder"
        )
    config, run = atomic_files.read_json(folder / "config.json"), _find_source_run(folder)
    facts = records.read_metadata(folder) if (folder / PEFTRUN_METADATA).is_file() else {}
    return ExportSource("default", folder, False, config, facts, run, _read_run_record(run, key))


def _find_source_run(folder: Path) -> Path | None:
    """The run folder whose result `folder` is, or None: its record does not describe a checkpoint in it, or an export."""
    folder = folder.resolve()
    for run in folder.parents[:MAX_PARENTS]:
        if folder.relative_to(run).parts[0] in RESULT_DIRS and all((run / name).is_file() for name in (RECORD, CONFIG)):
            return run
    return None


def _read_run_record(run: Path | None, key: str) -> dict[str, Any]:
    if run is None:
        return {}
    record = records.read_record(run)
    if record.get("status") not in EXPORTABLE_STATUSES:
        reason = f" ({str(record['error']).splitlines()[0]})" if record.get("error") else ""
        raise ArtifactError(
            f"{key}: this run is '{record.get('status')}'{reason}, and only what a completed one made is exported; "
            f"finish it with action.resume={run}, or name another run"
        )
    return record
