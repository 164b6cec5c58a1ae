"""One merge: its adapter, base model and settings, shared by the code that writes and the code that verifies it."""

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
    """Adapter `name`, in the folder `adapter`, is merged into the base model in the folder `base`.

    Attributes:
        dtype: of the written tensors.
        pool: threads that read files while others are written.
        fingerprint_future: the base model's fingerprint.
        hashes: name of each written file → its sha256.
        comparisons: for each written file, the tensors whose bytes equal the base model's.
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
        """The base model's fingerprint, once its files are read. Raises: AdapterError: the adapter was made for another base model."""
        mark = self.fingerprint_future.result()
        base_match.check_base_match(
            base_files.format_base_name(self.model), mark, self.adapter, self.allow_base_mismatch,
            lambda: load_tokenizer(self.base, self.model),
        )  # fmt: skip
        return mark

    def start_checks(self, base: Path, written: Path) -> None:
        """Starts to hash a written file and to compare it with the base model's, while both are in the page cache."""
        self.hashes[written.name] = self.pool.submit(atomic_files.hash_file, written)
        readers: list[Future[Any]] = [self.hashes[written.name]]
        if self.action.verify:
            self.comparisons.append(self.pool.submit(verify.find_equal_tensors, base, written))
            readers.append(self.comparisons[-1])
        if self._exceeds_memory:

            def drop_when_read() -> None:
                wait(readers)
                safetensors_stream.drop_from_memory(written)

            self.pool.submit(drop_when_read)

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Whether the page cache cannot hold the files of both models: written ones would evict the base model's before they are read."""
        return 2 * atomic_files.measure_size(self.base) > free_memory.get_resident_limit().bytes

    def remove_written(self, folder: Path) -> None:
        """Removes the files written so far."""
        self.hashes.clear()
        self.comparisons.clear()
        for file in folder.iterdir():
            file.unlink()

    @property
    def head(self) -> classifier_head.ClassifierHead | None:
        """A classifier's head; None for a language model."""
        return classifier_head.read_adapter_head(str(self.adapter), self.name)
