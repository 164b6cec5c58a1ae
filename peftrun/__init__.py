"""peftrun: the life of a PEFT adapter, by config. `import peftrun` imports no torch."""

from typing import TYPE_CHECKING, Any

from peftrun.errors import (
    AdapterError,
    ArtifactError,
    ConfigError,
    DataError,
    DeviceError,
    ModelError,
    PeftrunError,
    ProofError,
)
from peftrun.result import RunResult

if TYPE_CHECKING:
    from peftrun.api import load, run

__all__ = [
    "AdapterError", "ArtifactError", "ConfigError", "DataError", "DeviceError", "ModelError", "PeftrunError", "ProofError",
    "RunResult", "load", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in ("load", "run"):
        raise AttributeError(f"module 'peftrun' has no attribute {name!r}")
    from peftrun import api

    return getattr(api, name)
