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
    from peftrun.api import load, load_adapter, run
    from peftrun.config.schema.run import RunSpec

__all__ = [
    "AdapterError", "ArtifactError", "ConfigError", "DataError", "DeviceError", "ModelError", "PeftrunError", "ProofError",
    "RunResult", "RunSpec", "load", "load_adapter", "run",
]  # fmt: skip


LAZY = {
    "load": "api",
    "load_adapter": "api",
    "run": "api",
    "RunSpec": "config.schema.run",
}  # what is imported when it is asked for


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'peftrun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"peftrun.{LAZY[name]}"), name)
