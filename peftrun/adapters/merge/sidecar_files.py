"""Files of a model folder other than weights: config, tokenizer, templates, code, licence. Light."""

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
WEIGHT_METADATA = (".index.json", "peftrun.json", "record.json")  # they describe files that are not copied
ADAPTER_PREFIX = "adapter_"


def copy_sidecar_files(base: Path, folder: Path) -> None:
    """Copies them into `folder`, those of subfolders too, except of a subfolder with weights, which is another model."""
    for file in _iter_sidecar_files(base):
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _iter_sidecar_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir():
            if not any(file.suffix in WEIGHT_SUFFIXES for file in path.rglob("*")):
                yield from _iter_sidecar_files(path)
        elif (
            path.suffix not in WEIGHT_SUFFIXES
            and not path.name.endswith(WEIGHT_METADATA)
            and not path.name.startswith(ADAPTER_PREFIX)
        ):
            yield path
