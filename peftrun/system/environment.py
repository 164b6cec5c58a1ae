"""What a run stands on besides its config: every package, the machine, the settings of its threads, peftrun's own code. Light."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE_DIR = Path(__file__).parent.parent  # the package
METADATA = re.compile(r"(?P<name>[^~-][^-]*)(-(?P<version>[^-]+))?(-py[\d.]+)?\.(dist|egg)-info")
CPU_FLAG_PREFIXES = ("avx", "amx", "fma", "sse4", "asimd", "sve", "bf16", "i8mm")  # those by which kernels are chosen
NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86 tiles, x86 vectors, Arm
ENV_SETTINGS = (  # of the process, read by the libraries that compute
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KMP_AFFINITY", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip
DRIVER_DIR = Path("/proc/driver/nvidia")


def describe_environment() -> dict[str, Any]:
    """For the record of a run that begins: a lock of what it stands on. Nothing is imported for it."""
    model, flags = read_cpu_info()
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": {"model": model, "flags": sorted(flag for flag in flags if flag.startswith(CPU_FLAG_PREFIXES))},
        "cores": _count_cores(),
        "gpus": _list_gpus(),
        "driver": _read_driver_version(),
        "settings": {name: os.environ[name] for name in ENV_SETTINGS if name in os.environ},
        "code": _describe_source(),
        "packages": list_installed_packages(),
    }


def list_installed_packages() -> dict[str, str]:
    """Name → version of every installed distribution. Of two of a name the one that would be imported counts."""
    return dict(_list_packages_on(tuple(sys.path)))


@cache
def _list_packages_on(path: tuple[str, ...]) -> dict[str, str]:
    """Looked up once for each path: a sweep has many records."""
    found: dict[str, str] = {}
    for entry in path:
        if entry.endswith("_vendor"):  # what setuptools carries inside itself, put on the path once it is imported
            continue
        for name in _list_names(entry):
            one = METADATA.fullmatch(name)
            if one:
                plain = re.sub(r"[._]+", "-", one["name"]).lower()
                found.setdefault(plain, one["version"] or _get_version(plain))
    return dict(sorted(found.items()))


def _list_names(entry: str) -> list[str]:
    try:
        return sorted(os.listdir(entry or "."))
    except OSError:  # a folder that is not there, or a zip file
        return []


def _get_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@cache
def read_cpu_info() -> tuple[str, frozenset[str]]:
    """Model and feature flags of the first processor; nothing where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    told = {key.strip().lower(): text.strip() for key, _, text in (line.partition(":") for line in reversed(lines))}
    flags = told.get("flags") or told.get("features") or ""
    return told.get("model name") or platform.machine(), frozenset(flags.split())


def find_native_bf16() -> str | None:
    """The feature of the processor that computes bfloat16; None where it does so by way of float32."""
    return next((flag for flag in NATIVE_BF16 if flag in read_cpu_info()[1]), None)


def _count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list_gpus() -> list[str]:
    """Names of NVIDIA's, as the driver tells them; others are told by torch, once it is there."""
    texts = [_read_text(file) for file in sorted(DRIVER_DIR.glob("gpus/*/information"))]
    return [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line.startswith("Model")]


def _read_driver_version() -> str | None:
    found = re.search(r"(\d+\.\d+(\.\d+)?)", _read_text(DRIVER_DIR / "version"))
    return found[1] if found else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _describe_source() -> dict[str, str | None]:
    """peftrun's own source: one digest of all its files, and the commit where it is a checkout."""
    whole = hashlib.sha256()
    for file in sorted(PACKAGE_DIR.rglob("*.py")):
        whole.update(f"{file.relative_to(PACKAGE_DIR).as_posix()}\n".encode() + file.read_bytes() + b"\0")
    return {
        "sha256": whole.hexdigest(),
        "git_commit": get_git_commit(PACKAGE_DIR.parent) if (PACKAGE_DIR.parent / ".git").exists() else None,
    }


def get_git_commit(folder: Path) -> str | None:
    """What is checked out in a folder that git keeps; None where it keeps none, or there is no git."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None
