"""What this process and its GPU hold of memory, in bytes."""

import resource
import sys

import psutil
import torch

RESIDENT, ON_GPU = "resident_bytes", "gpu_peak_bytes"  # in the rows of metrics.jsonl


def measure_memory() -> dict[str, int]:
    """For a row of metrics: what the process holds now; of a GPU the most that its tensors have taken so far."""
    found = {RESIDENT: int(psutil.Process().memory_info().rss)}
    return found | ({ON_GPU: torch.cuda.max_memory_allocated()} if torch.cuda.is_initialized() else {})


def measure_peak_memory() -> dict[str, int]:
    """For the record: the most that the process has held since it began, and on a GPU the most that its tensors took."""
    found = {"peak_resident_bytes": get_peak_resident()}
    return found | ({"peak_gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_initialized() else {})


def get_peak_resident() -> int:
    """Bytes that this process held at its height."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
