"""What is merged into what, for those who write it and those who prove it."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from peftrun.adapters import base_match
from peftrun.adapters.merge import verify
from peftrun.adapters.merge.verify import TensorPair
from peftrun.artifacts import base_files, classifier_head
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.config.schema.actions import MergeAction
from peftrun.config.schema.run import ModelSpec
from peftrun.io import atomic_files, safetensors_stream
from peftrun.models.device import Device
from peftrun.models.tokenizer import load_tokenizer
from peftrun.system import free_memory


@dataclass(frozen=True)
class MergeJob:
    """Adapter `name`, in the folder `adapter`, goes into the base in the folder `base`.

    Attributes:
        dtype: what is written.
        pool: of threads that read beside the one that writes.
        hashing: gives the base's fingerprint once its files are read.
        hashes: give the sha256 of each written file, by its name.
        comparing: give the tensors of each written file whose bytes are the base's.
    """

    model: ModelSpec
    action: MergeAction
    allow_base_mismatch: bool
    place: Device
    name: str
    base: Path
    adapter: Path
    dtype: str
    pool: ThreadPoolExecutor
    fingerprint_future: Future[Fingerprint]
    hashes: dict[str, Future[str]] = field(default_factory=dict)
    comparisons: list[Future[set[TensorPair]]] = field(default_factory=list)

    @cached_property
    def mark(self) -> Fingerprint:
        """The base's fingerprint, once its files are read. Raises: AdapterError: the adapter was made for another base."""
        mark = self.fingerprint_future.result()
        base_match.check_base_match(
            base_files.format_base_name(self.model), mark, self.adapter, self.allow_base_mismatch,
            lambda: load_tokenizer(self.base, self.model),
        )  # fmt: skip
        return mark

    def start_checks(self, base: Path, written: Path) -> None:
        """Begins to hash a file that was written, and to compare it with the base's, while both are in the system's memory."""
        self.hashes[written.name] = self.pool.submit(atomic_files.hash_file, written)
        readers: list[Future[Any]] = [self.hashes[written.name]]
        if self.action.verify:
            self.comparisons.append(self.pool.submit(verify.find_equal_tensors, base, written))
            readers.append(self.comparisons[-1])
        if self._exceeds_memory:
            self.pool.submit(_drop_once_read, written, readers)

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Whether memory cannot hold the files of both models: what is written would push out what is not yet read of the base."""
        return 2 * atomic_files.measure_size(self.base) > free_memory.get_resident_limit().bytes

    def remove_written(self, folder: Path) -> None:
        """Removes what was written so far."""
        self.hashes.clear()
        self.comparisons.clear()
        for file in folder.iterdir():
            file.unlink()

    @property
    def head(self) -> classifier_head.ClassifierHead | None:
        """Of a classifier; None for a language model."""
        return classifier_head.read_adapter_head(str(self.adapter), self.name)


def _drop_once_read(written: Path, readers: list[Future[Any]]) -> None:
    wait(readers)
    safetensors_stream.drop_from_memory(written)
