"""Which versions of everything a run stands on; imports none of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "peftrun", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "hydra-core", "omegaconf", "safetensors",
)  # fmt: skip


def collect_versions() -> dict[str, str]:
    """Installed version of each library that shapes a run, and of Python."""
    return {"python": platform.python_version(), **{name: get_version(name) for name in LIBRARIES}}


def get_version(name: str) -> str:
    """Installed version of one distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
