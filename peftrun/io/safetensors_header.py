"""Reading the header of a safetensors file without torch: names, dtypes, shapes, byte ranges."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftrun.errors import ArtifactError

LENGTH_BYTES = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file. `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[TensorEntry]:
    """Every tensor of the file, in file order.

    Raises: ArtifactError: the file is not safetensors, or is shorter or longer than its header says.
    Source: the format's specification (an 8-byte little-endian length, a JSON header, then the bytes).
    """
    try:
        found = _parse_header(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: is not a readable safetensors file ({error}); restore it or make it again"
        ) from error
    expected, actual = max((entry.end for entry in found), default=0), path.stat().st_size
    if found and expected != actual:
        raise ArtifactError(f"{path}: is truncated or torn ({actual} bytes, its header says {expected}); restore it")
    return found


def rename_tensors(path: Path, names: Mapping[str, str]) -> None:
    """Gives tensors of a file other names; their bytes are copied as they are."""
    new = path.with_name(f".{path.name}.tmp")
    with open(path, "rb") as file, open(new, "wb") as target:
        header = json.loads(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
        text = json.dumps({names.get(name, name): item for name, item in header.items()}).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)  # the format asks for tensors that begin at multiples of eight
        target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        shutil.copyfileobj(file, target)
    new.replace(path)


def _parse_header(path: Path) -> list[TensorEntry]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = LENGTH_BYTES + length
    return sorted(
        (
            TensorEntry(
                name,
                item["dtype"],
                tuple(item["shape"]),
                start + item["data_offsets"][0],
                start + item["data_offsets"][1],
            )
            for name, item in header.items()
        ),
        key=lambda entry: entry.begin,
    )
