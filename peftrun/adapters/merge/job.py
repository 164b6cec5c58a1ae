"""One merge: its adapter, base model and settings, shared by the code that writes and the code that verifies it."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from peftrun.adapters import base_match
from peftrun.adapters.merge import file_check
from peftrun.adapters.merge.file_check import FileCheck
from peftrun.artifacts import base_files, classifier_head, fingerprint
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.fingerprint import Fingerprint
from peftrun.config.schema.actions import MergeAction
from peftrun.config.schema.run import ModelSpec
from peftrun.io import atomic_files, safetensors_stream
from peftrun.models import memory_check
from peftrun.models.device import Device
from peftrun.models.tokenizer import load_tokenizer
from peftrun.system import free_memory

WHOLE_COPIES = 4  # of a weight that is merged whole, in float32: the base's, the adapter's change, the sum, and one on its way to the host
PIECES_BYTES = 1 << 29  # blocks of rows that are computed at a time, hidden states, logits


@dataclass(frozen=True)
class MergeJob:
    """`adapter` is merged into the base model in the folder `base`.

    Attributes:
        dtype: of the written tensors.
        pool: threads that read files while others are written.
        checks: name of each written file → the read of it and of the base model's file.
    """

    model: ModelSpec
    action: MergeAction
    allow_base_mismatch: bool
    place: Device
    base: Path
    adapter: AdapterRef
    dtype: str
    pool: ThreadPoolExecutor
    checks: dict[str, Future[FileCheck]] = field(default_factory=dict)

    @cached_property
    def is_base_known(self) -> bool:
        """Whether the base model's files need not be read for its fingerprint."""
        return fingerprint.are_weights_cached(self.base)

    @cached_property
    def mark(self) -> Fingerprint:
        """The base model's fingerprint, from what was read of its files. Raises: AdapterError: the adapter was made for another base model."""
        checks = [check.result() for check in self.checks.values()]
        hashed = {check.base: check.base_lines for check in checks}
        mark = fingerprint.fingerprint_model(self.base, hashed).with_arguments(self.model.arguments)
        base_match.check_base_match(
            base_files.format_base_name(self.model), mark, self.adapter, self.allow_base_mismatch,
            lambda: load_tokenizer(self.base, self.model),
        )  # fmt: skip
        return mark

    def start_check(self, base: Path, written: Path) -> None:
        """Starts to read a written file and the base model's, while both are in the page cache."""
        check = self.pool.submit(
            file_check.check_file, base, written, hash_base=not self.is_base_known, compare=self.action.verify
        )
        self.checks[written.name] = check
        if self._exceeds_memory:
            check.add_done_callback(lambda _: safetensors_stream.drop_from_memory(written))

    @cached_property
    def _exceeds_memory(self) -> bool:
        """Whether the page cache cannot hold the files of both models: written ones would evict the base model's before they are read."""
        return 2 * atomic_files.measure_size(self.base) > free_memory.get_resident_limit().bytes

    def remove_written(self, folder: Path) -> None:
        """Removes the files written so far."""
        wait(self.checks.values())
        self.checks.clear()
        for file in folder.iterdir():
            file.unlink()

    @cached_property
    def device(self) -> torch.device:
        """Where the merge and its proof compute layer by layer: a GPU that the config names and that is not to hold only a part; else the CPU.

        Not with `device=auto`: most of the time is reading, hashing and writing, and no figure shows yet that a GPU saves any of it.
        """
        place = self.place
        on_gpu = place.is_typed and place.name in memory_check.GPU_TYPES and place.max_memory is None
        return torch.device(self.place.name if on_gpu else "cpu")

    def check_memory(self, largest: int) -> None:
        """Args: largest: values of the largest weight that is merged whole. Raises: MemoryShortageError: the GPU has too little free memory."""
        if self.device.type != "cpu":
            size = 2 * self.adapter.weights.stat().st_size + WHOLE_COPIES * 4 * largest + PIECES_BYTES
            memory_check.check_gpu_memory("a merge in pieces takes", self.place, size)

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.adapter.name

    @cached_property
    def head(self) -> classifier_head.ClassifierHead | None:
        """A classifier's head; None for a language model."""
        return classifier_head.read_adapter_head(self.adapter)
