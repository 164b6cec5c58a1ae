"""A disk or a memory that is full, by whichever library it is told, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftrun.errors import ArtifactError, DeviceError, PeftrunError
from peftrun.io import atomic_files

# What torch, CUDA, the system's loader and mmap say where there is no memory left.
MEMORY_FULL_MESSAGES = ("can't allocate memory", "Cannot allocate memory", "out of memory", "failed to map segment")


@contextmanager
def convert_resource_errors(out_dir: Path) -> Iterator[None]:
    """Inside, a full disk or a full memory is the user's to mend. Raises: ArtifactError, DeviceError: it is full."""
    try:
        yield
    except Exception as error:
        fault = to_resource_error(error, out_dir)
        if fault is None:
            raise
        raise fault from error


def to_resource_error(error: Exception, out_dir: Path) -> ArtifactError | DeviceError | None:
    """What an error means for the user, if a disk or a memory was full; else None."""
    return _to_disk_error(error, out_dir) or _to_memory_error(error)


def _to_memory_error(error: Exception) -> DeviceError | None:
    """A process or a GPU that has no memory left, by whichever library it is told."""
    reason = " ".join(str(error).split())
    if isinstance(error, PeftrunError) or not (
        isinstance(error, MemoryError) or any(one in reason for one in MEMORY_FULL_MESSAGES)
    ):
        return None
    return DeviceError(
        f"memory is full{f' ({reason[:200]})' if reason else ''}; type device.dtype=bfloat16, model.quantization=nf4, or a smaller batch, raise the limit "
        "(`ulimit -v unlimited`), or use a machine with more memory"
    )


def _to_disk_error(error: Exception, out_dir: Path) -> ArtifactError | None:
    code = getattr(error, "errno", None)
    if not atomic_files.is_write_error(error) or (
        isinstance(error, OSError) and code not in atomic_files.DISK_FULL_ERRNOS
    ):
        return None
    where, reason = getattr(error, "filename", None) or out_dir, getattr(error, "strerror", None) or str(error)
    return ArtifactError(f"{where}: the disk is full ({' '.join(reason.split())[:200]}); free space and run again")
