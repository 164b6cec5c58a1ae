"""The C library's memory: kept when it is freed, since fetching it from the system again costs more than many a sum."""

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8  # malloc.h of glibc
NEVER = -1
MAPPINGS = 1 << 16  # most at a time, as glibc has it


def keep_freed(
    give_back_above: int = NEVER, arenas: int | None = None, grow_by: int | None = None, not_from: int | None = None
) -> None:
    """Has freed memory kept for the next tensor, up to so many bytes; nothing where the C library has no such thing, or the user has
    set one of its `MALLOC_` variables.

    Args:
        arenas: at most so many pools of memory; fewer keep less in all.
        grow_by: bytes that are fetched at once.
        not_from: bytes from which a tensor is given back at once, so that it leaves no gap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    chosen = {
        M_MMAP_MAX: MAPPINGS if not_from else 0, M_MMAP_THRESHOLD: not_from,
        M_TRIM_THRESHOLD: give_back_above, M_ARENA_MAX: arenas, M_TOP_PAD: grow_by,
    }  # fmt: skip
    for option, value in chosen.items():
        if value is not None:
            mallopt(option, value)


def give_back() -> None:
    """Returns freed memory to the system, so that it counts as free; nothing where the C library has no such thing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
