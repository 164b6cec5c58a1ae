"""Asking torch for the same bytes each time, and hearing which operations cannot promise them on this device."""

import os
import re
import warnings
from typing import Any

import torch

# Read by cuBLAS when it starts, and by the attention of transformers at each step.
VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
WARNED = re.compile(r"(?P<name>\S.*?) (does not have a deterministic implementation|defaults to a non-deterministic)")
CUBLAS = re.compile(r".*not deterministic because it uses (?P<name>CuBLAS)", re.DOTALL)
ONCE = "defaults to"  # of these torch warns once a process
LIBRARIES = ("OpenMP", "Intel(R)")  # lines of torch's own account of what it computes with

_SET: set[str] = set()  # variables that were not set by the user
_ASKED: list[bool] = []  # what was asked for since `forget`, the last counts
_HEARD: set[str] = set()
_HEARD_ONCE: set[str] = set()


def ask(wanted: bool) -> None:
    """From here on algorithms that give the same bytes each time, or (false) those that torch chooses by itself."""
    torch.use_deterministic_algorithms(wanted, warn_only=wanted)
    # Filling what is to be overwritten anyway costs time and hides nothing here.
    torch.utils.deterministic.fill_uninitialized_memory = not wanted
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = wanted, False
    for name, value in VARIABLES.items():
        if wanted and name not in os.environ:
            os.environ[name] = value
            _SET.add(name)
        elif not wanted and name in _SET:
            os.environ.pop(name, None)
            _SET.discard(name)
    _ASKED.append(wanted)
    _HEARD.clear()
    _listen()


def forget() -> None:
    """Another run begins, which has computed nothing yet."""
    _ASKED.clear()


def described() -> dict[str, Any] | None:
    """For the record: threads, what torch is made of, and what was not deterministic; None before anything was asked."""
    if not _ASKED:
        return None
    wanted = _ASKED[-1]
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [line for line in torch.__config__.parallel_info().splitlines() if line.startswith(LIBRARIES)],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **_gpus(),
        "deterministic": wanted,
        "not_deterministic": sorted(_HEARD | _HEARD_ONCE) if wanted else None,
    }


def _gpus() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _listen() -> None:
    """Takes torch's warnings of such operations off the terminal. Libraries set filters and readers anew, so this is done at each run."""
    for pattern in (WARNED, CUBLAS):
        warnings.filterwarnings("always", message=pattern.pattern)
    before = warnings.showwarning
    if getattr(before, "listens", False):
        return

    def heard(message: Warning | str, *where: Any, **more: Any) -> None:
        found = name_in(str(message))
        if found is None:
            before(message, *where, **more)
        else:
            (_HEARD_ONCE if ONCE in str(message) else _HEARD).add(found)

    heard.listens = True  # type: ignore[attr-defined]
    warnings.showwarning = heard


def name_in(message: str) -> str | None:
    """The operation that a warning of torch says is not deterministic; None if it says something else."""
    found = WARNED.match(message) or CUBLAS.match(message)
    return found["name"] if found else None
