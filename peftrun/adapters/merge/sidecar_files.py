"""What a model folder is made of beside its weights: config, tokenizer, templates, code, licence. Light."""

import shutil
from collections.abc import Iterator
from pathlib import Path

WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
    ".tflite",
}
WEIGHT_METADATA = (".index.json", "peftrun.json", "record.json")  # about files that are not carried
ADAPTER_PREFIX = "adapter_"


def copy_sidecar_files(base: Path, folder: Path) -> None:
    """Puts them into `folder`, those of sub-folders too; a sub-folder with weights is a model of its own and stays."""
    for file in _iter_sidecar_files(base):
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _iter_sidecar_files(folder: Path) -> Iterator[Path]:
    for one in sorted(folder.iterdir()):
        if one.name.startswith((".", "__pycache__")):
            continue
        if one.is_dir():
            if not any(inner.suffix in WEIGHT_SUFFIXES for inner in one.rglob("*")):
                yield from _iter_sidecar_files(one)
        elif (
            one.suffix not in WEIGHT_SUFFIXES
            and not one.name.endswith(WEIGHT_METADATA)
            and not one.name.startswith(ADAPTER_PREFIX)
        ):
            yield one
