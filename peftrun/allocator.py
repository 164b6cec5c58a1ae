"""The C library's memory: kept when it is freed, since fetching it from the system again costs more than many a sum."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8  # malloc.h of glibc
NEVER = -1
MAPPINGS, THRESHOLD = 1 << 16, 1 << 17  # glibc's own: most mappings at a time, and bytes from which memory is one
_CHOSEN = {M_MMAP_MAX: MAPPINGS, M_MMAP_THRESHOLD: THRESHOLD}  # as the C library is set now, which does not tell


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
    chosen = {
        M_MMAP_MAX: MAPPINGS if not_from else 0, M_MMAP_THRESHOLD: not_from,
        M_TRIM_THRESHOLD: give_back_above, M_ARENA_MAX: arenas, M_TOP_PAD: grow_by,
    }  # fmt: skip
    _set({option: value for option, value in chosen.items() if value is not None})


@contextmanager
def kept_nothing() -> Iterator[None]:
    """What is fetched and freed inside, as the weights of a model that is to have none, leaves no gaps behind."""
    before = dict(_CHOSEN)
    _set({M_MMAP_MAX: MAPPINGS, M_MMAP_THRESHOLD: THRESHOLD})
    try:
        yield
    finally:
        _set(before)


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, value in options.items():
        mallopt(option, value)
        _CHOSEN[option] = value


def give_back() -> None:
    """Returns freed memory to the system, so that it counts as free; nothing where the C library has no such thing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
