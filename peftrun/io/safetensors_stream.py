"""Reads and writes safetensors files piece by piece, so that only a piece of each tensor is in memory."""

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
from peftrun.io import atomic_files, blocks, host_memory, safetensors_header
from peftrun.io.safetensors_header import TensorEntry

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COPY_BYTES = 1 << 26  # per call
FLUSH_BYTES = 1 << 28  # written between two flushes
PIECE_VALUES = 1 << 21  # read at once
READ_AHEAD_BYTES = 1 << 27
HOST = torch.device("cpu")
_SPARE_BUFFERS: list[bytearray] = []  # reused from one tensor to the next


RowBlock = tuple[int, int]  # first row, last row + 1
Part = tuple[int, Callable[[], torch.Tensor]]  # index of its first value in the flat tensor; computes its values


def split_rows(rows: int, width: int) -> list[RowBlock]:
    """Blocks of a (rows, width) tensor, each of at most `PIECE_VALUES` values or a single row."""
    step = max(1, PIECE_VALUES // width)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    file: Path
    entry: TensorEntry

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored values."""
        return DTYPES[self.entry.dtype]

    @property
    def count(self) -> int:
        """Number of values."""
        return torch.Size(self.entry.shape).numel()

    def rows(self, start: int | None, stop: int | None) -> "StoredTensor":
        """Rows `start` up to `stop` as a tensor of shape (stop - start, …); the whole tensor if one of them is None."""
        if start is None or stop is None:
            return self
        size = (self.entry.end - self.entry.begin) // self.entry.shape[0]  # bytes of a row
        begin, shape = self.entry.begin + start * size, (stop - start, *self.entry.shape[1:])
        return StoredTensor(self.file, replace(self.entry, shape=shape, begin=begin, end=begin + (stop - start) * size))

    def row_blocks(self) -> list[RowBlock]:
        """Blocks small enough to stay in the processor's cache while they are computed with."""
        return split_rows(self.entry.shape[0], max(1, self.count // max(1, self.entry.shape[0])))

    def parts(self) -> list["Part"]:
        """Its values in float32, one part per block of rows."""
        if not self.entry.shape:
            return [(0, self.read_float)]
        width = self.count // max(1, self.entry.shape[0])
        return [(block[0] * width, self.rows(*block).read_float) for block in self.row_blocks()]

    def read_float(self, buffer: torch.Tensor | None = None, device: torch.device | None = None) -> torch.Tensor:
        """Its values in float32, in `buffer` (see `read`) or new memory of `device` (None: of the host)."""
        return self.read(torch.empty(self.count, device=device) if buffer is None else buffer)

    def read_stored(self) -> torch.Tensor:
        """Its values in the stored dtype."""
        return self.read(torch.empty(self.count, dtype=self.dtype))

    def read(self, buffer: torch.Tensor) -> torch.Tensor:
        """Its values in the dtype of `buffer`, as a view of it: flat, of at least `count` values. Read from disk piece by piece."""
        values, begin = buffer[: self.count], 0  # (count,)
        for piece in self.pieces(buffer.device):
            # as stored, which is smaller than float32; converted where it is computed with
            values[begin : begin + len(piece)].copy_(piece.to(buffer.device))
            begin += len(piece)
        return values.reshape(self.entry.shape)

    def pieces(self, device: torch.device = HOST) -> Iterator[torch.Tensor]:
        """Its values as stored, flat, at most `PIECE_VALUES` at a time; the next piece overwrites the last. `device`: will copy them."""
        size = min(PIECE_VALUES, self.count) * self.dtype.itemsize
        with _borrow_buffer(size, device) as buffer, open(self.file, "rb", buffering=0) as file:
            file.seek(self.entry.begin)
            for start in range(0, self.count, PIECE_VALUES):
                view = buffer[: min(PIECE_VALUES, self.count - start) * self.dtype.itemsize]
                if hasattr(os, "posix_fadvise"):  # the kernel reads on while this piece is computed with
                    os.posix_fadvise(file.fileno(), file.tell() + READ_AHEAD_BYTES, len(view), os.POSIX_FADV_WILLNEED)
                unread = view
                while unread:
                    count = file.readinto(unread)
                    if not count:
                        raise ArtifactError(f"{file.name}: ends too early; fetch it again")
                    unread = unread[count:]
                yield torch.frombuffer(view, dtype=self.dtype)  # (at most PIECE_VALUES,)

    def copy_bytes_to(self, handle: int) -> None:
        """Writes its bytes at the position of an open file; inside the kernel where the system can."""
        begin = self.entry.begin
        with open(self.file, "rb", buffering=0) as file:
            while begin < self.entry.end:
                size = min(COPY_BYTES, self.entry.end - begin)
                try:
                    begin += os.copy_file_range(file.fileno(), handle, size, offset_src=begin)
                except (OSError, AttributeError):
                    # another file system, or an operating system without it; a full disk fails again here
                    data = os.pread(file.fileno(), size, begin)
                    _write_all(handle, data)
                    begin += len(data)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: `parts`, computed when it is written; None: the bytes of `source`."""

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
    """A safetensors file that has its header and full length from the start, and whose tensors are written in any order."""

    def __init__(self, path: Path, planned: list[PlannedTensor]) -> None:
        """Writes the header."""
        self.path, self._unwritten, self._unflushed = path, {tensor.name: tensor for tensor in planned}, 0
        header: dict[str, Any] = {}
        end = 0  # offsets count from the end of the header
        for tensor in planned:
            begin, end = end, end + tensor.size
            dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
            header[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of 8 bytes
        self._offsets = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
        with open(path, "wb", buffering=0) as file:
            _write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)

    @property
    def unwritten(self) -> Collection[str]:
        """Names of the tensors that are not written yet."""
        return self._unwritten.keys()

    def write(self, name: str) -> None:
        """Writes the tensor if it is not written yet."""
        if name not in self._unwritten:
            return
        tensor, offset = self._unwritten.pop(name), self._offsets[name]
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(offset)
            if tensor.source is not None and tensor.parts is None:
                tensor.source.copy_bytes_to(file.fileno())
            else:
                blocks.map_blocks(partial(_write_part, file.fileno(), offset, tensor.dtype), tensor.parts or [])
        self._unflushed += tensor.size
        if self._unflushed > FLUSH_BYTES:  # the disk writes while the next tensors are computed
            threading.Thread(target=_flush_file, args=[self.path]).start()
            self._unflushed = 0


def drop_from_memory(file: Path) -> None:
    """Flushes a file to the disk and removes it from the page cache; does nothing where the system cannot."""
    if hasattr(os, "posix_fadvise"):
        _flush_file(file)
        with suppress(OSError), open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_index(folder: Path, weight_map: dict[str, str], size: int) -> None:
    """The index of a model in several files. `weight_map`: tensor → file name. `size`: bytes of all tensors."""
    atomic_files.write_json(
        folder / safetensors_header.INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": weight_map}
    )


def _flush_file(path: Path) -> None:
    with suppress(OSError), open(path, "rb") as file:  # an error here comes again in the final flush of the folder
        os.fsync(file.fileno())


def _write_part(handle: int, begin: int, dtype: torch.dtype, part: Part) -> None:
    """Writes a part, rounded to `dtype`, of the tensor that begins at byte `begin` of the file."""
    first, compute = part
    offset = begin + first * dtype.itemsize
    for values in compute().detach().reshape(-1).split(PIECE_VALUES):  # flat, at most PIECE_VALUES each
        view = memoryview(host_memory.copy_to_host(values.float().to(dtype)).view(torch.uint8).numpy())
        while view:
            count = os.pwrite(handle, view, offset)
            view, offset = view[count:], offset + count


@contextmanager
def _borrow_buffer(size: int, device: torch.device) -> Iterator[memoryview]:
    """A buffer of an earlier read if there is one: allocating fresh memory costs more than reading into it."""
    if device.type != "cpu":
        yield memoryview(host_memory.allocate_host(size, torch.uint8, device).numpy())
        return
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


def _write_all(handle: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
