"""Everything a user's input or an artefact can be at fault for.

    PeftrunError            caught once in `jobs.run`: one line each, exit code 1
    ├── ConfigError         a key, a value, or a pair of values that cannot stand together
    ├── ModelError          a base model that is not there or cannot be read
    ├── AdapterError        an adapter that is not there, broken, or made for another base
    ├── DataError           rows that are missing, empty, or do not fit
    ├── DeviceError         hardware or a precision that this machine does not have
    │   └── MemoryShortageError   a base or a training that free memory cannot hold
    ├── ArtifactError       a file or folder that could not be written, or would be overwritten
    ├── SweepError          cells of a sweep that failed, each with its reason; the others were run
    ├── CheckError          options that do not resolve, or do not fit their model
    └── ProofError          a proof that failed: what was written is not what was meant

Anything else that escapes is a bug and keeps its traceback.
"""

from typing import Any


class PeftrunError(Exception):
    """A fault that the user can mend. `lines` holds one clear sentence for each problem."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class ConfigError(PeftrunError):
    """The configuration is at fault."""


class ModelError(PeftrunError):
    """The base model is at fault."""


class AdapterError(PeftrunError):
    """An adapter folder is at fault."""


class DataError(PeftrunError):
    """The task's data is at fault."""


class DeviceError(PeftrunError):
    """The device or its precision is at fault."""


class MemoryShortageError(DeviceError):
    """What would not fit into memory, before it is loaded. `base`, `room` and `device` are what `fitting.advising` chooses advice by."""

    def __init__(self, *lines: str, statement: str = "", base: Any = None, room: Any = None, device: str = "") -> None:
        self.statement, self.base, self.room, self.device = statement, base, room, device
        super().__init__(*lines)


class ArtifactError(PeftrunError):
    """Something could not be written, or would overwrite what is there."""


class SweepError(PeftrunError):
    """Cells of a sweep failed; the others were run."""


class CheckError(PeftrunError):
    """Options are at fault. `facts` goes into the record of the run."""

    def __init__(self, *lines: str, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        super().__init__(*lines)


class ProofError(PeftrunError):
    """A proof of equality or of effect failed. `facts` goes into the record of the run."""

    def __init__(self, *lines: str, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}
        super().__init__(*lines)
