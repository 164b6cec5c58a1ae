"""The adapter that was the reference model of an adapter's training, found again by its hash. Light."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftrun.artifacts import adapter_folder
from peftrun.artifacts.adapter_folder import STACK, AdapterRef
from peftrun.artifacts.run_layout import CONFIG
from peftrun.config import values as config
from peftrun.errors import AdapterError, PeftrunError
from peftrun.io import atomic_files

REFERENCE = "reference"  # in record.json and peftrun.json: the reference model of the training
MODEL, DIGEST = "model", "sha256"  # its entries: `parent` or `base`, and the hash of the parent's weights


def describe_reference(reference: str | None, parent: AdapterRef | None) -> dict[str, Any]:
    """The entry on the reference model, for record.json and peftrun.json; empty for an objective without one."""
    if reference is None:
        return {}
    digest = {DIGEST: atomic_files.hash_file(parent.weights)} if reference == "parent" and parent else {}
    return {REFERENCE: {MODEL: reference, **digest}}


def find_reference(adapter: AdapterRef) -> AdapterRef | None:
    """The adapter that was the reference model; None if it was the base model, or there was none.

    Raises: AdapterError: it is nowhere to be found.
    """
    digest = ((adapter.metadata or {}).get(REFERENCE) or {}).get(DIGEST)
    if digest is None:
        return None
    for path in _iter_places(adapter):
        try:
            found = adapter_folder.resolve_adapter(str(path), adapter.name)
        except (PeftrunError, OSError):
            continue
        if atomic_files.hash_file(found.weights) == digest:
            return found
    raise AdapterError(
        f"{adapter.option}: its reference model, the adapter with sha256 {digest[:12]} that it was trained from, is not where it was"
    )


def _iter_places(adapter: AdapterRef) -> Iterator[Path]:
    """Folders where it may be: beside an adapter that was stacked on it, and where the run that trained from it names it."""
    yield adapter.folder / STACK / "0"
    run = adapter_folder.find_adapter_run(str(adapter.folder))
    if run is None:
        return
    try:
        paths = (config.read_run(run / CONFIG, report_changes=False).get("adapter") or {}).values()
    except PeftrunError:
        return
    for path in map(Path, paths):
        yield from (
            folder / path.expanduser() for folder in (Path(), *run.absolute().parents)
        )  # relative to wherever it was typed
