"""Safetensors files read and written piece by piece, so that no more than a piece is in memory."""

import json
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftrun.errors import ArtifactError
from peftrun.io import atomic_files, blocks, safetensors_header
from peftrun.io.safetensors_header import TensorEntry

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COPY_BYTES = 1 << 26  # bytes
FLUSH_BYTES = 1 << 28  # bytes
PIECE_VALUES = 1 << 21  # values
READ_AHEAD_BYTES = 1 << 27  # bytes
_SPARE_BUFFERS: list[bytearray] = []  # of tensors that have been read


RowBlock = tuple[int, int]  # first row, last row + 1
Part = tuple[int, Callable[[], torch.Tensor]]  # number of values before it in its tensor, and what computes its values


def split_rows(rows: int, width: int) -> list[RowBlock]:
    """Parts of so many rows of so many values, none longer than a piece unless one row is."""
    step = max(1, PIECE_VALUES // width)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    file: Path
    entry: TensorEntry

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        return DTYPES[self.entry.dtype]

    @property
    def count(self) -> int:
        """Number of values."""
        return torch.Size(self.entry.shape).numel()

    def rows(self, start: int | None, stop: int | None) -> "StoredTensor":
        """The same tensor's rows from `start` up to `stop`; all of it where these are None."""
        if start is None or stop is None:
            return self
        size = (self.entry.end - self.entry.begin) // self.entry.shape[0]
        begin, shape = self.entry.begin + start * size, (stop - start, *self.entry.shape[1:])
        return StoredTensor(self.file, replace(self.entry, shape=shape, begin=begin, end=begin + (stop - start) * size))

    def row_blocks(self) -> list[RowBlock]:
        """Parts that are small enough to stay in a processor's cache while they are computed with."""
        return split_rows(self.entry.shape[0], max(1, self.count // max(1, self.entry.shape[0])))

    def parts(self) -> list["Part"]:
        """Its values in float32."""
        if not self.entry.shape:
            return [(0, self.read_float)]
        width = self.count // max(1, self.entry.shape[0])
        return [(block[0] * width, self.rows(*block).read_float) for block in self.row_blocks()]

    def read_float(self, room: torch.Tensor | None = None) -> torch.Tensor:
        """Its values in float32, in `room` (see `read`) or new memory."""
        return self.read(torch.empty(self.count) if room is None else room)

    def read_stored(self) -> torch.Tensor:
        """Its values in the dtype that they are stored in."""
        return self.read(torch.empty(self.count, dtype=self.dtype))

    def read(self, room: torch.Tensor) -> torch.Tensor:
        """Its values in the dtype of `room` (flat, at least `count` long), which holds them: read from disk piece by piece."""
        into, place = room[: self.count], 0
        for part in self.pieces():
            into[place : place + len(part)].copy_(part)
            place += len(part)
        return into.reshape(self.entry.shape)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its values as stored, flat, so many at a time; each is overwritten by the next."""
        with _borrow_buffer(PIECE_VALUES * self.dtype.itemsize) as buffer, open(self.file, "rb", buffering=0) as file:
            file.seek(self.entry.begin)
            for start in range(0, self.count, PIECE_VALUES):
                view = buffer[: min(PIECE_VALUES, self.count - start) * self.dtype.itemsize]
                _read_ahead(file.fileno(), file.tell(), len(view))
                _read_all(file, view)
                yield torch.frombuffer(view, dtype=self.dtype)

    def copy_bytes_to(self, handle: int) -> None:
        """Its bytes at the place of an open file, without passing through this process where the system can do that."""
        with open(self.file, "rb", buffering=0) as file:
            begin = self.entry.begin
            while begin < self.entry.end:
                begin += _copy_bytes(file.fileno(), handle, begin, min(COPY_BYTES, self.entry.end - begin))


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written, as its `parts` are computed; None: the bytes of `source` as they are."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: StoredTensor | None
    parts: list[Part] | None

    @property
    def size(self) -> int:
        """Bytes."""
        return int(torch.Size(self.shape).numel() * self.dtype.itemsize)


def dtype_eps(dtype: torch.dtype) -> float:
    """The distance from 1 to the next larger number, of a floating dtype."""
    return float(torch.finfo(dtype).eps)


def list_stored_tensors(file: Path) -> list[StoredTensor]:
    """Every tensor of a file, in file order. Raises: ArtifactError: the file is torn."""
    return [StoredTensor(file, entry) for entry in safetensors_header.read_header(file)]


class TensorFile:
    """A safetensors file that is there in full length from the start, and whose tensors are written as they are come to."""

    def __init__(self, path: Path, planned: list[PlannedTensor]) -> None:
        """Writes the header."""
        self.path, self._unwritten, self._unflushed = path, {one.name: one for one in planned}, 0
        body, end = _lay_out(planned)
        text = json.dumps({"__metadata__": {"format": "pt"}} | body, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the bytes of the tensors begin at a multiple of eight, as the format asks
        self._places = {key: 8 + len(text) + one["data_offsets"][0] for key, one in body.items()}
        with open(path, "wb", buffering=0) as file:
            _write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)

    @property
    def unwritten(self) -> Collection[str]:
        """Names of tensors."""
        return self._unwritten.keys()

    def write(self, name: str) -> None:
        """Writes the tensor, unless it is."""
        if name not in self._unwritten:
            return
        one = self._unwritten.pop(name)
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(self._places[name])
            if one.source is not None and one.parts is None:
                one.source.copy_bytes_to(file.fileno())
            else:
                blocks.map_blocks(partial(_write_part, file.fileno(), self._places[name], one.dtype), one.parts or [])
        self._unflushed += one.size
        if self._unflushed > FLUSH_BYTES:  # the disk writes while the next tensors are computed
            threading.Thread(target=_flush_file, args=[self.path]).start()
            self._unflushed = 0


def drop_from_memory(file: Path) -> None:
    """Has the system write a file to the disk and keep it there alone; nothing where the system offers no such thing."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError), open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_index(folder: Path, places: dict[str, str], size: int) -> None:
    """The index of a model in several files. `places`: tensor → file. `size`: bytes of all tensors."""
    atomic_files.write_json(
        folder / safetensors_header.INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": places}
    )


def _lay_out(planned: list[PlannedTensor]) -> tuple[dict[str, Any], int]:
    """The entries of a file's header, and the bytes of its tensors."""
    body, end = {}, 0
    for one in planned:
        place = [end, end + one.size]
        body[one.name] = {"dtype": DTYPE_NAMES[one.dtype], "shape": list(one.shape), "data_offsets": place}
        end += one.size
    return body, end


def _flush_file(path: Path) -> None:
    with suppress(OSError), open(path, "rb") as file:  # what fails here fails again where everything is flushed
        os.fsync(file.fileno())


def _write_part(handle: int, begin: int, dtype: torch.dtype, part: Part) -> None:
    """A part of the tensor that begins there, rounded."""
    place, compute = part
    place = begin + place * dtype.itemsize
    for values in compute().detach().reshape(-1).split(PIECE_VALUES):
        view = memoryview(values.float().to(dtype).view(torch.uint8).numpy())
        while view:
            count = os.pwrite(handle, view, place)
            view, place = view[count:], place + count


@contextmanager
def _borrow_buffer(size: int) -> Iterator[memoryview]:
    """Memory that was read into before: to fetch it from the system anew costs more than the reading."""
    try:
        buffer = _SPARE_BUFFERS.pop()
    except IndexError:
        buffer = bytearray()
    if len(buffer) < size:
        buffer = bytearray(size)
    try:
        yield memoryview(buffer)
    finally:
        _SPARE_BUFFERS.append(buffer)


def _read_ahead(handle: int, begin: int, size: int) -> None:
    """Has the system read what will be asked for in a while in all likelihood, so many bytes of it, while this is computed with."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, begin + READ_AHEAD_BYTES, size, os.POSIX_FADV_WILLNEED)


def _read_all(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise ArtifactError(f"{file.name}: ends too early; fetch it again")
        view = view[count:]


def _write_all(handle: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _copy_bytes(source: int, target: int, begin: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset_src=begin)
    except (
        OSError,
        AttributeError,
    ):  # another file system, or another operating system; a full disk says so again below
        part = os.pread(source, count, begin)
        _write_all(target, part)
        return len(part)
