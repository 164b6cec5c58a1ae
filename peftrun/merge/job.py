"""What is merged into what, for those who write it and those who prove it."""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from peftrun import heads
from peftrun.action_specs import MergeAction
from peftrun.adapter import load
from peftrun.device import Device
from peftrun.fingerprint import Fingerprint
from peftrun.model import portable_name
from peftrun.schema import ModelSpec


@dataclass(frozen=True)
class MergeJob:
    """Adapter `name`, in the folder `adapter`, goes into the base in the folder `base`.

    Attributes:
        dtype: what is written.
        hashing: gives the base's fingerprint once its files are read.
    """

    model: ModelSpec
    action: MergeAction
    allow_base_mismatch: bool
    place: Device
    name: str
    base: Path
    adapter: Path
    dtype: str
    hashing: Future[Fingerprint]

    def check_base(self) -> Fingerprint:
        """The base's fingerprint. Raises: AdapterError: the adapter was made for another base."""
        mark = self.hashing.result()
        load.check_base(portable_name(self.model), mark, self.adapter, self.allow_base_mismatch)
        return mark

    @property
    def head(self) -> heads.Head | None:
        """Of a classifier; None for a language model."""
        return heads.of_adapter(str(self.adapter), self.name)
