"""torch's deterministic algorithms, and which operations have none on this device."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Read by cuBLAS when it starts, and by transformers' attention at each step.
ENV_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
WARNING_PATTERN = re.compile(
    r"(?P<name>\S.*?) (does not have a deterministic implementation|defaults to a non-deterministic)"
)
CUBLAS_PATTERN = re.compile(r".*not deterministic because it uses (?P<name>CuBLAS)", re.DOTALL)
WARNED_ONCE = "defaults to"  # torch warns of these only once per process
LIBRARIES = ("OpenMP", "Intel(R)")  # starts of the lines of torch's parallel_info that name its libraries

_VARIABLES_SET: set[str] = set()  # environment variables set here, not by the user
_REQUESTED: list[bool] = []  # requests since `reset_determinism`; the last one counts
_WARNED_OPS: set[str] = set()
_WARNED_ONCE_OPS: set[str] = set()  # kept across runs of a process, since torch does not repeat these warnings


def set_deterministic(enabled: bool) -> None:
    """Switches torch to algorithms that give the same bytes each time, or (False) back to its own choice."""
    torch.use_deterministic_algorithms(enabled, warn_only=enabled)
    # torch would fill every torch.empty with NaN to expose reads of uninitialized memory: slow, and of no use here.
    torch.utils.deterministic.fill_uninitialized_memory = not enabled
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = enabled, False
    for name, value in ENV_VARIABLES.items():
        if enabled and name not in os.environ:
            os.environ[name] = value
            _VARIABLES_SET.add(name)
        elif not enabled and name in _VARIABLES_SET:
            os.environ.pop(name, None)
            _VARIABLES_SET.discard(name)
    _REQUESTED.append(enabled)
    _WARNED_OPS.clear()
    _capture_warnings()


@contextmanager
def use_tf32(enabled: bool) -> Iterator[None]:
    """Inside, if enabled, GPUs multiply float32 matrices in TF32; proofs and evaluations outside of it stay exact."""
    before = torch.get_float32_matmul_precision()
    if enabled:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def reset_determinism() -> None:
    """Forgets the requests of an earlier run of this process."""
    _REQUESTED.clear()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within the block, convolutions in float32 are computed in float32; torch's default on a GPU has 10 bits. Its matmuls are exact."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def describe_determinism() -> dict[str, Any] | None:
    """For the record: threads, torch's libraries, GPUs, and operations that were not deterministic; None before `set_deterministic`."""
    if not _REQUESTED:
        return None
    enabled = _REQUESTED[-1]
    gpus: dict[str, Any] = {}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        gpus = {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [line for line in torch.__config__.parallel_info().splitlines() if line.startswith(LIBRARIES)],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **gpus,
        "deterministic": enabled,
        "not_deterministic": sorted(_WARNED_OPS | _WARNED_ONCE_OPS) if enabled else None,
    }


def _capture_warnings() -> None:
    """Collects torch's warnings of such operations instead of printing them. Repeated for each run: libraries reset the filters."""
    for pattern in (WARNING_PATTERN, CUBLAS_PATTERN):
        warnings.filterwarnings("always", message=pattern.pattern)
    before = warnings.showwarning
    if getattr(before, "collects_op_names", False):
        return

    def collect_op_name(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        name = parse_op_name(str(message))
        if name is None:
            before(message, *args, **kwargs)
        else:
            (_WARNED_ONCE_OPS if WARNED_ONCE in str(message) else _WARNED_OPS).add(name)

    collect_op_name.collects_op_names = True  # type: ignore[attr-defined]
    warnings.showwarning = collect_op_name


def parse_op_name(message: str) -> str | None:
    """The operation that a warning of torch calls non-deterministic; None for any other warning."""
    match = WARNING_PATTERN.match(message) or CUBLAS_PATTERN.match(message)
    return match["name"] if match else None
