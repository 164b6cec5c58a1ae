"""An adapter's files in PEFT's layout, without paths of this machine. Light."""

import json
import shutil
from pathlib import Path
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.portable_names import get_recorded_base_name
from peftrun.artifacts.run_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.export import own_tokenizer
from peftrun.io import atomic_files


def copy_adapter(
    source: ExportSource, folder: Path, base_id: str | None, changes: dict[str, Any] | None = None
) -> None:
    """Copies config, weights and peftrun.json of an adapter to `folder`, and the tokenizer files if it has any.

    Args: base_id: name of the base model in the config; None: the recorded one. changes: other keys of the config to change.
    """
    for name in (Path(ADAPTER_WEIGHTS), Path(PEFTRUN_METADATA), *own_tokenizer.list_files(source.folder)):
        if (source.folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / name, folder / name)
    values = source.config | {"base_model_name_or_path": base_id or get_recorded_base_name(source)} | (changes or {})
    if values == source.config:  # byte for byte
        shutil.copyfile(source.folder / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
    else:
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        atomic_files.write_text(folder / ADAPTER_CONFIG, text)


def list_files(folder: Path) -> dict[str, int]:
    """Relative path → size in bytes of every file below `folder`, sorted."""
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
