"""The header of a safetensors file, read without torch: names, dtypes, shapes, byte ranges."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

INDEX_FILE = "model.safetensors.index.json"
LENGTH_BYTES = 8  # of the header's length at the start of the file; tensors are aligned to it as well


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file. `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def list_weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder that transformers reads: some folders hold the same weights a second time in another layout.

    Raises: ArtifactError: the index cannot be read.
    """
    index, whole = folder / INDEX_FILE, folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        return [folder / name for name in sorted(set(atomic_files.read_json(index).get("weight_map", {}).values()))]
    return sorted(folder.glob("*.safetensors"))


def read_header(path: Path) -> list[TensorEntry]:
    """Every tensor of the file, in file order.

    Raises: ArtifactError: the file is not safetensors, or is shorter or longer than its header says.
    Source: the format's specification (an 8-byte little-endian length, a JSON header, then the bytes).
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > path.stat().st_size:  # read(length) would allocate whatever a corrupt file asks for
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start, entries = LENGTH_BYTES + length, []
        for name, item in header.items():
            begin, end = item["data_offsets"]  # bytes from the end of the header
            entries.append(TensorEntry(name, item["dtype"], tuple(item["shape"]), start + begin, start + end))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: is not a readable safetensors file ({error}); restore it or make it again"
        ) from error
    expected, actual = max((entry.end for entry in entries), default=0), path.stat().st_size
    if entries and expected != actual:
        raise ArtifactError(f"{path}: is truncated or torn ({actual} bytes, its header says {expected}); restore it")
    return sorted(entries, key=lambda entry: entry.begin)


def rename_tensors(path: Path, names: Mapping[str, str]) -> None:
    """Renames tensors of a file (old name → new name); their bytes are copied unchanged."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(path, "rb") as file, open(temporary, "wb") as target:
        header = json.loads(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
        text = json.dumps({names.get(name, name): item for name, item in header.items()}).encode()
        # The format wants tensors to begin at multiples of 8 bytes; offsets count from the header's end, so they stay.
        text += b" " * (-len(text) % LENGTH_BYTES)
        target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        shutil.copyfileobj(file, target)
    temporary.replace(path)
