"""Errors caused by a user's input or by an artifact.

    PeftrunError            caught once in `cli/hydra_app.py`: one line each, exit code 1
    ├── ConfigError         a key, a value, or two values that contradict each other
    ├── ModelError          a base model that is missing or cannot be read
    ├── AdapterError        an adapter that is missing, broken, or made for another base model
    ├── DataError           rows that are missing, empty, or do not fit the task
    ├── DeviceError         hardware or a dtype that this machine does not have
    │   └── MemoryShortageError   a base model or a training that does not fit in free memory
    ├── ArtifactError       a file or folder that could not be written, or would be overwritten
    ├── SweepError          cells of a sweep that failed, each with its reason; the other cells were run
    ├── CheckError          options that do not compose, or do not fit their model
    └── ProofError          a failed verification: the written files are not what they should be

Any other exception is a bug and keeps its traceback.
"""

from typing import Any


class PeftrunError(Exception):
    """An error that the user can fix. `lines` holds one message for each problem."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class ConfigError(PeftrunError):
    """The configuration is invalid."""


class ModelError(PeftrunError):
    """The base model is missing, unreadable or unsuitable."""


class AdapterError(PeftrunError):
    """An adapter folder is missing, broken or does not fit the base model."""


class DataError(PeftrunError):
    """The task's data is missing or does not fit the task."""


class DeviceError(PeftrunError):
    """The device or the dtype is not available."""


class MemoryShortageError(DeviceError):
    """Raised before loading what would not fit in memory.

    Attributes:
        statement: sizes needed and free.
        base, headroom, device: base model info, headroom and device, from which `planning.memory_fit` derives its advice.
    """

    def __init__(
        self, *lines: str, statement: str = "", base: Any = None, headroom: Any = None, device: str = ""
    ) -> None:
        self.statement, self.base, self.headroom, self.device = statement, base, headroom, device
        super().__init__(*lines)


class ArtifactError(PeftrunError):
    """A file or folder could not be written, or would be overwritten."""


class SweepError(PeftrunError):
    """Cells of a sweep failed; the other cells were run."""


class CheckError(PeftrunError):
    """Options failed `action=check`. `facts` goes into the record of the run."""

    def __init__(self, *lines: str, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        super().__init__(*lines)


class ProofError(PeftrunError):
    """A verification failed (of equality, or of an effect). `facts` goes into the record of the run."""

    def __init__(self, *lines: str, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        super().__init__(*lines)
