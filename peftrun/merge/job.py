"""What is merged into what, for those who write it and those who prove it."""

from dataclasses import dataclass
from pathlib import Path

from peftrun import heads
from peftrun.action_specs import MergeAction
from peftrun.device import Device
from peftrun.schema import RunSpec


@dataclass(frozen=True)
class MergeJob:
    """Adapter `name`, in the folder `adapter`, goes into the base in the folder `base`; `dtype`: what is written."""

    spec: RunSpec
    place: Device
    name: str
    base: Path
    adapter: Path
    dtype: str

    @property
    def action(self) -> MergeAction:
        """What the action was asked."""
        assert isinstance(self.spec.action, MergeAction)
        return self.spec.action

    @property
    def head(self) -> heads.Head | None:
        """Of a classifier; None for a language model."""
        return heads.of_adapter(str(self.adapter), self.name)
