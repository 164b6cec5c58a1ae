"""Copies the result of a training to the Hub and to a URL, once its record is finished. Light."""

import tempfile
from importlib import import_module
from pathlib import Path

from peftrun.artifacts import adapter_folder, adapter_source
from peftrun.artifacts.remote_stores import HubStore
from peftrun.artifacts.run_layout import ADAPTER
from peftrun.config.schema.actions import ExportAction
from peftrun.config.schema.run import RunSpec


def finish_uploads(out_dir: Path) -> None:
    """Waits until the run's checkpoints are sent."""
    import_module("peftrun.training.uploads").finish_uploads(out_dir)


def upload_result(spec: RunSpec, out_dir: Path) -> list[tuple[str, str]]:
    """Sends what the run has made; rows of the summary that say where it is.

    Raises: ArtifactError: it could not be sent; the run folder is complete.
    """
    uploads = import_module("peftrun.training.uploads")
    uploads.finish_uploads(out_dir)
    rows = []
    for store in uploads.open_stores(spec, out_dir):
        if isinstance(store, HubStore):
            _push_to_hub(store, out_dir)
            rows.append(("pushed", f"to the Hub: {store.repo_id}"))
        else:
            store.send_result(out_dir)
            rows.append(("copied", f"to {store.url}/{out_dir.name}"))
    return rows


def _push_to_hub(store: HubStore, out_dir: Path) -> None:
    # Imported late: most runs push nothing.
    base_config, hub_folder = (import_module(f"peftrun.export.{name}") for name in ("base_config", "hub_folder"))
    if (out_dir / ADAPTER).is_dir():
        source = adapter_source.open_adapter_source(adapter_folder.resolve_adapter(str(out_dir)))
    else:
        source = adapter_source.open_model_source(str(out_dir))
    base_id = base_config.find(source, None, None).id
    action = ExportAction("export", "hub", None, base_id, None, store.repo_id, True, store.private, None)
    with tempfile.TemporaryDirectory() as folder:
        hub_folder.write_hub_folder(source, base_id, action, Path(folder))
        store.send_result(Path(folder))
