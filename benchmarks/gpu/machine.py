"""The machine in words and figures: card, its clocks while something runs, driver, versions, commit.

python -m benchmarks.gpu.machine        # the card as JSON; null: none that torch can compute on
"""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import ROOT

# Dense bfloat16 TFLOP/s of the data sheets; the first name that is part of the card's counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A6000": 155,
    "A40": 150, "A10G": 70, "A10": 125, "RTX 4090": 165, "RTX 3090": 71, "MI300X": 1307,
}  # fmt: skip
OPTIONAL = ("triton", "liger-kernel", "bitsandbytes", "flash-attn", "kernels", "torchao", "fastapi", "pytest")
SAMPLED = ("clocks.sm", "power.draw", "temperature.gpu", "utilization.gpu")
FIXED = ("driver_version", "clocks.max.sm", "power.limit", "clocks.sm", "temperature.gpu", "memory.used")


def find_card() -> dict[str, Any] | None:
    """Name, memory, capability and CUDA version of the card; None: torch finds none. Asked in a process of its own, which ends."""
    code = [sys.executable, "-m", "benchmarks.gpu.machine"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"torch cannot be asked for a card: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def describe_card() -> dict[str, Any] | None:
    """The same, in this process."""
    import torch

    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "bf16": torch.cuda.is_bf16_supported(), "peak_tflops": find_peak(card.name),
    }  # fmt: skip


def find_peak(card: str) -> float | None:
    """Dense bfloat16 TFLOP/s by the card's data sheet; None: not in the list."""
    return next((float(peak) for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", card)), None)


def describe_machine(card: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that figures depend on."""
    optional = {name: found for name in OPTIONAL if (found := find_version(name))}
    return {**report.machine(), **optional, "commit": find_commit(), "card": card, "smi": query_smi(FIXED)}


def find_version(name: str) -> str | None:
    """Installed version of a distribution."""
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def find_commit() -> str | None:
    """The checkout's commit, with `+` if files differ from it; None: no git checkout."""
    git = ["git", "-C", str(ROOT)]
    with suppress(OSError):
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
        return (head.stdout.strip() + ("+" if changed.stdout.strip() else "")) or None
    return None


def slugify_card(card: dict[str, Any] | None) -> str:
    """`NVIDIA A100-SXM4-80GB` → `a100_sxm4_80gb`; `cpu` without a card."""
    name = card["name"].removeprefix("NVIDIA ") if card else "cpu"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def query_smi(fields: tuple[str, ...]) -> dict[str, str]:
    """What nvidia-smi says of the first card, by field; empty without it."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={get_visible_card()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = done.stdout.strip().split(", ")
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def get_visible_card() -> str:
    """Index or id of the GPU that is measured: the first that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


class ClockLog:
    """Clock, power and temperature of the card, a line a second; nothing without nvidia-smi."""

    def __init__(self, file: Path) -> None:
        self.file, self.process = file, None
        if shutil.which("nvidia-smi"):
            ask = [f"--query-gpu={','.join(SAMPLED)}", "--format=csv,noheader,nounits", f"--id={get_visible_card()}"]
            with file.open("wb") as output:
                self.process = subprocess.Popen(["nvidia-smi", *ask, "--loop=1"], stdout=output, stderr=output)

    def mark(self) -> int:
        """Where the next line will begin."""
        return self.file.stat().st_size if self.process else 0

    def summarize(self, start: int) -> dict[str, Any]:
        """Min, median and max of each field since `start`, of the seconds in which the card computed."""
        if not self.process:
            return {}
        return summarize_samples(self.file.read_bytes()[start:].decode(errors="replace").splitlines())

    def close(self) -> None:
        """Ends the sampling."""
        if self.process:
            self.process.kill()
            self.process.wait()


def summarize_samples(lines: list[str]) -> dict[str, Any]:
    """Spread of each field of SAMPLED over the lines with a utilization above 0; empty if there are none."""
    rows = []
    for line in lines:
        with suppress(ValueError):  # `[N/A]`, or a line that is half written
            values = [float(value) for value in line.split(",")]
            if len(values) == len(SAMPLED) and values[-1] > 0:
                rows.append(values)
    return {name: report.spread(column) for name, column in zip(SAMPLED, zip(*rows, strict=True), strict=False)}


if __name__ == "__main__":
    print(json.dumps(describe_card()))
