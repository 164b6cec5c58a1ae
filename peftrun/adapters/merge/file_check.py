"""Read a written file and the base model's file that it was made from, once: the digests of both, and which tensors are equal."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from peftrun.artifacts import fingerprint
from peftrun.io import safetensors_stream
from peftrun.io.safetensors_stream import StoredTensor

TensorPair = tuple[StoredTensor, StoredTensor]  # of the base model's files and of the merged ones


@dataclass
class FileCheck:
    """A written file against the base model's.

    Attributes:
        base: the base model's file.
        sha256: of the written file.
        equal: tensors with the same name and the same bytes; empty if they were not compared.
        base_lines: for the base model's fingerprint, see `fingerprint.format_tensor_line`; empty if it is known.
    """

    base: Path
    sha256: str = ""
    equal: set[TensorPair] = field(default_factory=set)
    base_lines: list[str] = field(default_factory=list)


def check_file(base: Path, written: Path, *, hash_base: bool, compare: bool) -> FileCheck:
    """Compare and hash. `hash_base`: also compute `base_lines`. `compare`: also find equal tensors.

    Raises: ArtifactError: a file is torn.
    """
    check, digest, position = FileCheck(base), hashlib.sha256(), 0
    base_tensors = {tensor.entry.name: tensor for tensor in safetensors_stream.list_stored_tensors(base)}
    with (
        open(base, "rb", buffering=0) as base_file,
        open(written, "rb", buffering=0) as written_file,
        ThreadPoolExecutor(1) as second,  # hashes the base while this thread hashes what was written
    ):
        pair = _FilePair(base_file, written_file, digest, second)
        for tensor in safetensors_stream.list_stored_tensors(written):
            pair.hash_written(position, tensor.entry.begin)  # the header
            position, original = tensor.entry.end, base_tensors.get(tensor.entry.name)
            if original is None or not has_same_form(original, tensor) or not (hash_base or compare):
                pair.hash_written(tensor.entry.begin, tensor.entry.end)
                continue
            base_digest = hashlib.sha256() if hash_base else None
            if pair.hash_both(original, tensor, base_digest, compare):
                check.equal.add((original, tensor))
            if base_digest:
                check.base_lines.append(fingerprint.format_tensor_line(original.entry, base_digest.hexdigest()))
                del base_tensors[original.entry.name]
    if hash_base:  # what the written file lacks or has in another dtype
        check.base_lines += fingerprint.hash_tensors(base, [tensor.entry for tensor in base_tensors.values()])
    check.sha256 = digest.hexdigest()
    return check


def has_same_form(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether dtype and shape are the same."""
    return (one.dtype, one.entry.shape) == (other.dtype, other.entry.shape)


class _FilePair:
    """Two open files, read in chunks. `digest`: of the written one, from its start to its end."""

    def __init__(self, base: BinaryIO, written: BinaryIO, digest: Any, second: ThreadPoolExecutor) -> None:
        self.base, self.written, self.digest, self.second = base, written, digest, second
        self.base_chunk, self.written_chunk = (memoryview(bytearray(fingerprint.CHUNK)) for _ in range(2))

    def hash_written(self, begin: int, end: int) -> None:
        """Add these bytes of the written file to its digest."""
        for start in range(begin, end, fingerprint.CHUNK):
            self.digest.update(fingerprint.read_chunk(self.written, self.written_chunk[: end - start], start))

    def hash_both(self, original: StoredTensor, tensor: StoredTensor, base_digest: Any, compare: bool) -> bool:
        """Add a tensor's bytes to both digests (None: the base model's is known). Returns whether they were compared and are equal."""
        equal, size = compare, tensor.entry.end - tensor.entry.begin
        for offset in range(0, size, fingerprint.CHUNK):
            hashing = None
            if base_digest or equal:
                base_part = fingerprint.read_chunk(
                    self.base, self.base_chunk[: size - offset], original.entry.begin + offset
                )
                hashing = self.second.submit(base_digest.update, base_part) if base_digest else None
            written_part = fingerprint.read_chunk(
                self.written, self.written_chunk[: size - offset], tensor.entry.begin + offset
            )
            self.digest.update(written_part)
            equal = equal and np.array_equal(base_part, written_part)
            if hashing:
                hashing.result()  # before the chunk is overwritten
        return equal
