"""The C library's memory: kept when it is freed, since fetching it from the system again costs more than many a sum."""

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
NEVER = -1
GROWTH = 1 << 28  # bytes that tensors of many sizes may leave in gaps that no other fits into
_RESIDENT = [0]  # bytes in memory when it was last given back


def keep_freed(arenas: int | None = None, grow_by: int | None = None) -> None:
    """Has freed memory kept for the next tensor; nothing where the C library has no such thing, or the user has set one of its
    `MALLOC_` variables.

    Args:
        arenas: at most so many pools of memory; fewer keep less in all.
        grow_by: bytes that are fetched at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, value in {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_ARENA_MAX: arenas, M_TOP_PAD: grow_by}.items():
        if value is not None:
            mallopt(option, value)


def give_back() -> None:
    """Returns freed memory to the system, so that it counts as free; nothing where the C library has no such thing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def give_back_gaps() -> None:
    """The same where the process has grown by `GROWTH` since the last time: gaps are cheap to use again and dear to fetch again."""
    if _now_resident() > _RESIDENT[0] + GROWTH:
        give_back()
        _RESIDENT[0] = _now_resident()


def _now_resident() -> int:
    """Bytes of memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
