"""Records in a merged model's folder what it was made of: base model, adapter, dtype before the merge."""

from pathlib import Path
from typing import Any

from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import PEFTRUN_METADATA
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files
from peftrun.system.versions import get_version

KEYS = ("base", "base_dtype", "adapter_sha256")


def write_provenance(folder: Path, base: dict[str, Any], base_dtype: str, adapter: AdapterRef) -> None:
    """Writes them to the merged model's `peftrun.json`."""
    atomic_files.write_json(
        folder / PEFTRUN_METADATA,
        {
            "peftrun": get_version("peftrun"),
            "merged": {
                "base": base,
                "base_dtype": base_dtype,
                "adapter_sha256": atomic_files.hash_file(adapter.weights),
            },
        },
    )


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Values of `KEYS`; None for a model that peftrun did not merge.

    Raises: ArtifactError: peftrun did not write the file, or it was changed.
    """
    path = folder / PEFTRUN_METADATA
    if not path.is_file():
        return None
    merged = atomic_files.read_json(path).get("merged")
    if not isinstance(merged, dict) or any(key not in merged for key in KEYS):
        raise ArtifactError(f"{path}: does not say what was merged; merge again, or remove the file to go without it")
    return merged
