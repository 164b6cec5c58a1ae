"""What is merged into what, for those who write it and those who prove it."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from peftrun import artifacts, heads
from peftrun.action_specs import MergeAction
from peftrun.adapter import base_match
from peftrun.base_tokenizer import load_tokenizer
from peftrun.device import Device
from peftrun.fingerprint import Fingerprint
from peftrun.merge import proof
from peftrun.merge.proof import Pair
from peftrun.model import portable_name
from peftrun.schema import ModelSpec


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
    hashing: Future[Fingerprint]
    hashes: dict[str, Future[str]] = field(default_factory=dict)
    comparing: list[Future[set[Pair]]] = field(default_factory=list)

    @cached_property
    def mark(self) -> Fingerprint:
        """The base's fingerprint, once its files are read. Raises: AdapterError: the adapter was made for another base."""
        mark = self.hashing.result()
        base_match.check(
            portable_name(self.model), mark, self.adapter, self.allow_base_mismatch,
            lambda: load_tokenizer(self.base, self.model),
        )  # fmt: skip
        return mark

    def follow(self, base: Path, written: Path) -> None:
        """Begins to hash a file that was written, and to compare it with the base's, while both are in the system's memory."""
        self.hashes[written.name] = self.pool.submit(artifacts.sha256, written)
        if self.action.verify:
            self.comparing.append(self.pool.submit(proof.equal_tensors, base, written))

    def forget_written(self, folder: Path) -> None:
        """Removes what was written so far."""
        self.hashes.clear()
        self.comparing.clear()
        for file in folder.iterdir():
            file.unlink()

    @property
    def head(self) -> heads.Head | None:
        """Of a classifier; None for a language model."""
        return heads.of_adapter(str(self.adapter), self.name)
