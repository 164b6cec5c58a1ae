"""Tunes glibc's malloc to keep freed memory: requesting it from the kernel again costs more than many matmuls."""

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
NEVER_TRIM = -1
GROWTH_BYTES = 1 << 27  # bytes that tensors of many sizes may leave in gaps that fit no other tensor
_LAST_RESIDENT = [0]  # resident bytes after the last release


def retain_freed_memory(arenas: int | None = None, grow_by: int | None = None) -> None:
    """Makes malloc reuse freed memory for the next tensor. Does nothing without glibc, or if the user has set a `MALLOC_` variable.

    Args:
        arenas: maximum number of memory pools; fewer retain less in total.
        grow_by: bytes that are requested from the kernel at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, value in {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER_TRIM, M_ARENA_MAX: arenas, M_TOP_PAD: grow_by}.items():
        if value is not None:
            mallopt(option, value)


def release_freed_memory() -> None:
    """Returns freed memory to the kernel, so that it counts as free. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def release_after_growth() -> None:
    """The same if the process has grown by `GROWTH_BYTES` since the last release: releasing after every tensor would be slow."""
    if _get_resident_bytes() > _LAST_RESIDENT[0] + GROWTH_BYTES:
        release_freed_memory()
        _LAST_RESIDENT[0] = _get_resident_bytes()


def _get_resident_bytes() -> int:
    """Resident bytes of this process; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
