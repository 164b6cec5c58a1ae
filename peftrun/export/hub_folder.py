"""Writes a folder for the Hub: an adapter in PEFT's layout, or a full model, with its card and its configuration. Light."""

import shutil
from pathlib import Path
from typing import Any

from peftrun.artifacts import portable_names, run_overrides
from peftrun.artifacts.adapter_source import ExportSource
from peftrun.artifacts.run_layout import CONFIG, PEFTRUN_METADATA
from peftrun.config import values as config
from peftrun.export import adapter_files, model_card, own_tokenizer
from peftrun.io import atomic_files

CARD_FILE = "README.md"
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def write_hub_folder(source: ExportSource, base_id: str | None, action: Any, folder: Path) -> None:
    """Writes everything that belongs in the repository: no checkpoints, no optimizer state, no paths of this machine."""
    values = config.read_run(source.run / CONFIG, report_changes=False) if source.run else {}
    if source.is_adapter:
        adapter_files.copy_adapter(source, folder, base_id)
    else:
        files = [
            path.relative_to(source.folder) for pattern in MODEL_FILES for path in sorted(source.folder.glob(pattern))
        ]
        files += own_tokenizer.list_files(source.folder)
        files += [Path(PEFTRUN_METADATA)] if (source.folder / PEFTRUN_METADATA).is_file() else []
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / file, folder / file)
        model_config = atomic_files.read_json(folder / "config.json")
        name = model_config.get("_name_or_path")  # transformers stores where the model was loaded from
        if isinstance(name, str) and portable_names.shorten_path(name) != name:
            model_config["_name_or_path"] = portable_names.shorten_path(name)
            atomic_files.write_json(folder / "config.json", model_config)
    if source.run:
        text = config.values_to_yaml(portable_names.shorten_paths(values))
        atomic_files.write_text(folder / CONFIG, text)
    typed = portable_names.shorten_override_paths(run_overrides.read_overrides(source.run)) if source.run else []
    about = model_card.collect_card_info(source, portable_names.shorten_paths(values), typed, base_id, action)
    atomic_files.write_text(folder / CARD_FILE, model_card.render_card(about))
