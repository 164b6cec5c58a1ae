"""A full disk or full memory, whichever library reports it, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftrun.errors import ArtifactError, DeviceError, PeftrunError
from peftrun.io import atomic_files

# Parts of the messages of torch, CUDA, the dynamic loader and mmap when memory is full.
MEMORY_FULL_MESSAGES = ("can't allocate memory", "Cannot allocate memory", "out of memory", "failed to map segment")


@contextmanager
def convert_resource_errors(out_dir: Path) -> Iterator[None]:
    """Within the block, a full disk or full memory is a user error. Raises: ArtifactError: the disk is full. DeviceError: memory is."""
    try:
        yield
    except Exception as error:
        fault = to_resource_error(error, out_dir)
        if fault is None:
            raise
        raise fault from error


def to_resource_error(error: Exception, out_dir: Path) -> ArtifactError | DeviceError | None:
    """The user error that `error` stands for if a disk or memory (of the process or a GPU) is full; else None."""
    disk_full = not isinstance(error, OSError) or error.errno in atomic_files.DISK_FULL_ERRNOS
    if disk_full and atomic_files.is_write_error(error):
        where, text = getattr(error, "filename", None) or out_dir, getattr(error, "strerror", None) or str(error)
        return ArtifactError(f"{where}: the disk is full ({' '.join(text.split())[:200]}); free space and run again")
    reason = " ".join(str(error).split())
    memory_full = isinstance(error, MemoryError) or any(words in reason for words in MEMORY_FULL_MESSAGES)
    if isinstance(error, PeftrunError) or not memory_full:
        return None
    return DeviceError(
        f"memory is full{f' ({reason[:200]})' if reason else ''}; type device.dtype=bfloat16, model.quantization=nf4, or a smaller batch, raise the limit "
        "(`ulimit -v unlimited`), or use a machine with more memory"
    )
