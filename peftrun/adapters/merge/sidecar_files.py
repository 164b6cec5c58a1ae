"""What a model folder is made of beside its weights: config, tokenizer, templates, code, licence. Light."""

import shutil
from collections.abc import Iterator
from pathlib import Path

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite"}
OF_WEIGHTS = (".index.json", "peftrun.json", "record.json")  # about files that are not carried
OF_ADAPTERS = "adapter_"


def copy(base: Path, folder: Path) -> None:
    """Puts them into `folder`, those of sub-folders too; a sub-folder with weights is a model of its own and stays."""
    for file in _found(base):
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _found(folder: Path) -> Iterator[Path]:
    for one in sorted(folder.iterdir()):
        if one.name.startswith((".", "__pycache__")):
            continue
        if one.is_dir():
            if not any(inner.suffix in WEIGHTS for inner in one.rglob("*")):
                yield from _found(one)
        elif one.suffix not in WEIGHTS and not one.name.endswith(OF_WEIGHTS) and not one.name.startswith(OF_ADAPTERS):
            yield one
