"""Versions of the libraries that a run depends on, without importing them."""

import platform

from peftrun.system import environment

LIBRARIES = (
    "peftrun", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "hydra-core", "omegaconf", "safetensors",
)  # fmt: skip


def collect_versions() -> dict[str, str]:
    """Installed version of each of `LIBRARIES`, and of Python."""
    return {"python": platform.python_version(), **{name: get_version(name) for name in LIBRARIES}}


def get_version(name: str) -> str:
    """Installed version of one distribution, or `not installed`."""
    return environment.list_installed_packages().get(name, "not installed")
