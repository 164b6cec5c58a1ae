"""Atomic writes of files and folders; everything that a run stores is written through this module.

A file or folder appears under its name complete or not at all: it is written to a hidden temporary
sibling, flushed to disk, then renamed.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peftrun.errors import ArtifactError

SWEEPS = ("sweep.json", "multirun.yaml")  # a sweep's folder holds one of them
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# Writers in Rust and C++ raise their own errors when the disk is full: (type, words of the message). They carry no errno.
WRITER_ERRORS = (
    ("SafetensorError", "I/O error"),
    ("RuntimeError", "unexpected pos"),
    ("RuntimeError", "PytorchStreamWriter"),
)


@contextmanager
def create_folder(target: Path, kept_if: type[Exception] | None = None) -> Iterator[Path]:
    """Yields a temporary sibling of `target` that becomes `target` when the block ends without an error.

    Args: kept_if: an error after which the folder stays, under the name that `find_rejected_path` gives.
    Raises: ArtifactError: `target` exists, or writing failed (then nothing is left behind).
    """
    if target.exists():
        raise ArtifactError(f"{target}: exists already and is never overwritten; name a folder that does not exist")
    temporary = _temporary_sibling(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        # In this order: a rename that reaches the disk before its contents would leave a complete name with torn files.
        flush_tree(temporary)
        os.rename(temporary, target)
        _flush_path(target.parent)
    except Exception as error:
        if kept_if is not None and isinstance(error, kept_if):
            os.rename(temporary, find_rejected_path(target))
        if is_write_error(error):
            raise ArtifactError(f"{target}: could not be written ({error}); nothing was kept there") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_of(out_dir: Path) -> Path | None:
    """The folder of the sweep that this run is a cell of, or None."""
    parents = out_dir.absolute().parents[:2]
    return next((folder for folder in parents if any((folder / name).is_file() for name in SWEEPS)), None)


def folder_key(out_dir: Path) -> str:
    """The key that sets where a run's folder is created; a cell's is inside its sweep's."""
    return "hydra.sweep.dir" if sweep_of(out_dir) else "hydra.run.dir"


def find_rejected_path(target: Path) -> Path:
    """Where an artifact that failed its proof is moved to: the first unused `NAME.rejected`, `NAME.rejected1`, … next to `target`."""
    names = (f"{target.name}.rejected{number or ''}" for number in itertools.count())
    return next(path for name in names if not (path := target.with_name(name)).exists())


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, replacing an existing file.

    Raises: ArtifactError: writing failed; the old content is intact.
    """
    temporary = _temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: could not be written ({error}); what was there is intact") from error
    finally:
        with suppress(OSError):  # missing after the rename, and where nothing could be written
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Appends one row to a JSON-lines file. Not atomic: a killed process can leave part of the last line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, [] if it is missing. A last line torn by a killed process is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ArtifactError: the file is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: is not readable JSON ({error}); restore it or make the artifact again") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: holds no JSON object; restore it or make the artifact again")
    return value


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path, parts: Iterable[Path], computed: Mapping[Path, str]) -> dict[str, str]:
    """Path relative to `root` → sha256 of every file in the folders `parts`. `computed`: digests of files that need not be read."""
    files = sorted(file for folder in parts for file in folder.rglob("*") if file.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads suffice: hashlib releases the GIL
        digests = pool.map(lambda file: computed.get(file) or hash_file(file), files)
        return {os.path.relpath(file, root): digest for file, digest in zip(files, digests, strict=True)}


def measure_size(folder: Path, pattern: str = "*.safetensors") -> int:
    """Bytes of the files of one folder that match `pattern`."""
    return sum(file.stat().st_size for file in folder.glob(pattern))


def is_write_error(error: BaseException) -> bool:
    """Whether an error came from the operating system, or from safetensors or torch writing a file."""
    return isinstance(error, OSError) or any(
        type(error).__name__ == name and words in str(error) for name, words in WRITER_ERRORS
    )


def _temporary_sibling(path: Path) -> Path:
    # in the same folder, since a rename is atomic within one file system only
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def flush_tree(folder: Path) -> None:
    """fsyncs every file and folder below `folder`, so that they survive a power cut."""
    for path in [*folder.rglob("*"), folder]:
        _flush_path(path)


def _flush_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
