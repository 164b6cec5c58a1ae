"""Memory used by this process and on its GPU, in bytes."""

import resource
import sys

import psutil
import torch

RESIDENT, ON_GPU = "resident_bytes", "gpu_peak_bytes"  # in the rows of metrics.jsonl


def measure_memory() -> dict[str, int]:
    """For a row of metrics: resident bytes now, and on a GPU the peak of allocated bytes so far."""
    usage = {RESIDENT: int(psutil.Process().memory_info().rss)}
    return usage | ({ON_GPU: torch.cuda.max_memory_allocated()} if torch.cuda.is_initialized() else {})


def measure_peak_memory() -> dict[str, int]:
    """For the record: peak resident bytes since the process began, and on a GPU the peak of allocated bytes."""
    usage = {"peak_resident_bytes": get_peak_resident()}
    return usage | ({"peak_gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_initialized() else {})


def get_peak_resident() -> int:
    """Peak resident bytes of this process."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return size if sys.platform == "darwin" else size * 1024
