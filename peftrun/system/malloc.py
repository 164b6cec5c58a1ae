"""The C library's memory: kept when it is freed, since fetching it from the system again costs more than many a sum."""

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
NEVER_TRIM = -1
GROWTH_BYTES = 1 << 28  # bytes that tensors of many sizes may leave in gaps that no other fits into
_LAST_RESIDENT = [0]  # bytes in memory when it was last given back


def retain_freed_memory(arenas: int | None = None, grow_by: int | None = None) -> None:
    """Has freed memory kept for the next tensor; nothing where the C library has no such thing, or the user has set one of its
    `MALLOC_` variables.

    Args:
        arenas: at most so many pools of memory; fewer keep less in all.
        grow_by: bytes that are fetched at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, value in {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER_TRIM, M_ARENA_MAX: arenas, M_TOP_PAD: grow_by}.items():
        if value is not None:
            mallopt(option, value)


def release_freed_memory() -> None:
    """Returns freed memory to the system, so that it counts as free; nothing where the C library has no such thing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def release_after_growth() -> None:
    """The same where the process has grown by `GROWTH` since the last time: gaps are cheap to use again and dear to fetch again."""
    if _get_resident_bytes() > _LAST_RESIDENT[0] + GROWTH_BYTES:
        release_freed_memory()
        _LAST_RESIDENT[0] = _get_resident_bytes()


def _get_resident_bytes() -> int:
    """Bytes of memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
