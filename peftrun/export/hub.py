"""A folder as the Hub expects it: an adapter in PEFT's layout, or a full model, with its card and its configuration. Light."""

import shutil
from pathlib import Path
from typing import Any

from peftrun import artifacts, asked, config
from peftrun.export import adapter_files, card, names, own_tokenizer
from peftrun.export.source import Source

CARD = "README.md"
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def write(source: Source, base_id: str | None, action: Any, folder: Path) -> None:
    """Everything that belongs into the repository, and nothing else: no checkpoint, no optimiser state, no path of this machine."""
    values = config.read_run(source.run / artifacts.CONFIG, aloud=False) if source.run else {}
    if source.is_adapter:
        adapter_files.copied(source, folder, base_id)
    else:
        _model(source, folder)
    if source.run:
        text = config.values_to_yaml(names.without_paths(values))
        artifacts.write_text(folder / artifacts.CONFIG, text)
    typed = names.typed_without_paths(asked.overrides(source.run)) if source.run else []
    about = card.about(source, names.without_paths(values), typed, base_id, action)
    artifacts.write_text(folder / CARD, card.text(about))


def _model(source: Source, folder: Path) -> None:
    own = [file.relative_to(source.folder) for pattern in MODEL_FILES for file in sorted(source.folder.glob(pattern))]
    own += own_tokenizer.files(source.folder)
    own += [Path(artifacts.FACTS)] if (source.folder / artifacts.FACTS).is_file() else []
    for file in own:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / file, folder / file)
    found = artifacts.read_json(folder / "config.json")
    name = found.get("_name_or_path")
    if isinstance(name, str) and names.portable(name) != name:
        artifacts.write_json(folder / "config.json", found | {"_name_or_path": names.portable(name)})
