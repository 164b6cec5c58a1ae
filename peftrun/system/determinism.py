"""Asking torch for the same bytes each time, and hearing which operations cannot promise them on this device."""

import os
import re
import warnings
from typing import Any

import torch

# Read by cuBLAS when it starts, and by the attention of transformers at each step.
ENV_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
WARNING_PATTERN = re.compile(
    r"(?P<name>\S.*?) (does not have a deterministic implementation|defaults to a non-deterministic)"
)
CUBLAS_PATTERN = re.compile(r".*not deterministic because it uses (?P<name>CuBLAS)", re.DOTALL)
WARNED_ONCE = "defaults to"  # of these torch warns once a process
LIBRARIES = ("OpenMP", "Intel(R)")  # lines of torch's own account of what it computes with

_VARIABLES_SET: set[str] = set()  # variables that were not set by the user
_REQUESTED: list[bool] = []  # what was asked for since `forget`, the last counts
_WARNED_OPS: set[str] = set()
_WARNED_ONCE_OPS: set[str] = set()


def set_deterministic(wanted: bool) -> None:
    """From here on algorithms that give the same bytes each time, or (false) those that torch chooses by itself."""
    torch.use_deterministic_algorithms(wanted, warn_only=wanted)
    # Filling what is to be overwritten anyway costs time and hides nothing here.
    torch.utils.deterministic.fill_uninitialized_memory = not wanted
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = wanted, False
    for name, value in ENV_VARIABLES.items():
        if wanted and name not in os.environ:
            os.environ[name] = value
            _VARIABLES_SET.add(name)
        elif not wanted and name in _VARIABLES_SET:
            os.environ.pop(name, None)
            _VARIABLES_SET.discard(name)
    _REQUESTED.append(wanted)
    _WARNED_OPS.clear()
    _capture_warnings()


def reset_determinism() -> None:
    """Another run begins, which has computed nothing yet."""
    _REQUESTED.clear()


def describe_determinism() -> dict[str, Any] | None:
    """For the record: threads, what torch is made of, and what was not deterministic; None before anything was asked."""
    if not _REQUESTED:
        return None
    wanted = _REQUESTED[-1]
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [line for line in torch.__config__.parallel_info().splitlines() if line.startswith(LIBRARIES)],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **_describe_gpus(),
        "deterministic": wanted,
        "not_deterministic": sorted(_WARNED_OPS | _WARNED_ONCE_OPS) if wanted else None,
    }


def _describe_gpus() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _capture_warnings() -> None:
    """Takes torch's warnings of such operations off the terminal. Libraries set filters and readers anew, so this is done at each run."""
    for pattern in (WARNING_PATTERN, CUBLAS_PATTERN):
        warnings.filterwarnings("always", message=pattern.pattern)
    before = warnings.showwarning
    if getattr(before, "listens", False):
        return

    def heard(message: Warning | str, *where: Any, **more: Any) -> None:
        found = parse_op_name(str(message))
        if found is None:
            before(message, *where, **more)
        else:
            (_WARNED_ONCE_OPS if WARNED_ONCE in str(message) else _WARNED_OPS).add(found)

    heard.listens = True  # type: ignore[attr-defined]
    warnings.showwarning = heard


def parse_op_name(message: str) -> str | None:
    """The operation that a warning of torch says is not deterministic; None if it says something else."""
    found = WARNING_PATTERN.match(message) or CUBLAS_PATTERN.match(message)
    return found["name"] if found else None
