"""What a run depends on besides its config: installed packages, the machine, thread settings, peftrun's source. Light."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE_DIR = Path(__file__).parent.parent
# A distribution's metadata folder; the version may be missing (development installs of setuptools).
METADATA = re.compile(r"(?P<name>[^~-][^-]*)(-(?P<version>[^-]+))?(-py[\d.]+)?\.(dist|egg)-info")
CPU_FLAG_PREFIXES = ("avx", "amx", "fma", "sse4", "asimd", "sve", "bf16", "i8mm")  # libraries choose kernels by these
NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86 tiles, x86 vectors, Arm
ENV_SETTINGS = (  # environment variables that change what the numeric libraries compute
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KMP_AFFINITY", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip
DRIVER_DIR = Path("/proc/driver/nvidia")
DEVICE_DIR = Path("/dev")
CUDA_FILES = ("nvidia[0-9]*", "kfd")  # in it: of NVIDIA's and AMD's drivers. A container may be given any one of them
OTHER_GPU_FILES = ("dri", "dxg")  # of Intel's, and of WSL's; machines without a GPU have them too


def describe_environment() -> dict[str, Any]:
    """For the record of a run: packages, machine, settings and source. Imports none of the packages."""
    model, flags = read_cpu_info()
    gpu_texts = [_read_text(file) for file in sorted(DRIVER_DIR.glob("gpus/*/information"))]
    driver = re.search(r"(\d+\.\d+(\.\d+)?)", _read_text(DRIVER_DIR / "version"))
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": {"model": model, "flags": sorted(flag for flag in flags if flag.startswith(CPU_FLAG_PREFIXES))},
        # those that this process may use, which a container or taskset can limit
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        # NVIDIA's only, from the driver's files; torch would list others, but is not imported here
        "gpus": [
            line.partition(":")[2].strip()
            for text in gpu_texts
            for line in text.splitlines()
            if line.startswith("Model")
        ],
        "driver": driver[1] if driver else None,
        "settings": {name: os.environ[name] for name in ENV_SETTINGS if name in os.environ},
        "code": _describe_source(),
        "packages": list_installed_packages(),
    }


def list_installed_packages() -> dict[str, str]:
    """Name → version of every installed distribution. Of two with one name, the one that would be imported."""
    return dict(_list_packages_on(tuple(sys.path)))


@cache
def _list_packages_on(path: tuple[str, ...]) -> dict[str, str]:
    """Cached by the search path, since a sweep writes many records."""
    versions: dict[str, str] = {}
    for entry in path:
        if entry.endswith("_vendor"):  # setuptools' bundled packages, on the path once it is imported
            continue
        try:
            names = sorted(os.listdir(entry or "."))
        except OSError:  # a missing folder, or a zip file
            continue
        for match in filter(None, map(METADATA.fullmatch, names)):
            name = re.sub(r"[._]+", "-", match["name"]).lower()
            if not match["version"]:
                with suppress(PackageNotFoundError):
                    versions.setdefault(name, version(name))
            versions.setdefault(name, match["version"] or "unknown")
    return dict(sorted(versions.items()))


def sees_cuda_gpu() -> bool:
    """Whether torch will find a GPU of NVIDIA or AMD, as far as files of their drivers tell."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not is_hidden and any(any(DEVICE_DIR.glob(file)) for file in CUDA_FILES)


def may_have_gpu() -> bool:
    """Whether torch could find a GPU of any kind here."""
    files = any(any(DEVICE_DIR.glob(file)) for file in OTHER_GPU_FILES)
    return sys.platform != "linux" or files or sees_cuda_gpu()


@cache
def read_cpu_info() -> tuple[str, frozenset[str]]:
    """Model and feature flags of the first processor; no flags where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    # reversed, so that of equal keys those of the first processor remain
    info = {key.strip().lower(): text.strip() for key, _, text in (line.partition(":") for line in reversed(lines))}
    flags = info.get("flags") or info.get("features") or ""  # x86 and Arm
    return info.get("model name") or platform.machine(), frozenset(flags.split())


def find_native_bf16() -> str | None:
    """The processor's flag for bfloat16 arithmetic; None where bfloat16 is emulated through float32."""
    return next((flag for flag in NATIVE_BF16 if flag in read_cpu_info()[1]), None)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _describe_source() -> dict[str, str | None]:
    """peftrun's own source: one digest over all its files, and the commit if it is a git checkout."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE_DIR.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE_DIR).as_posix()}\n".encode() + file.read_bytes() + b"\0")
    return {
        "sha256": digest.hexdigest(),
        "git_commit": get_git_commit(PACKAGE_DIR.parent) if (PACKAGE_DIR.parent / ".git").exists() else None,
    }


def get_git_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`; None if it is no git checkout, or git is not installed."""
    try:
        process = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None if process.returncode == 0 else None
