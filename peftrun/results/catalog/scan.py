"""Find runs and adapters below some folders, and stamp each so that a change is noticed. Opens no file."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from peftrun.artifacts.run_layout import ADAPTER_CONFIG, CHECKPOINTS, CONFIG, RECORD

# Earlier attempts at the cells of a sweep, in a folder next to its sweep.json, are no runs of their own.
ATTEMPTS, SUMMARY = "attempts", "sweep.json"
SKIPPED = {CHECKPOINTS, "__pycache__", "node_modules"}
COPIES, STORE = "artifacts", ".db"  # next to its database, a tracker stores copies of records and adapters
TRACKED = re.compile(r"[0-9a-f]{32}")  # name that MLflow gives to the folder of a run


def find_run_folders(roots: Sequence[str]) -> dict[str, str]:
    """Absolute folder of every run and of every adapter outside a run → its stamp, which changes if the folder must be read again.

    What is inside a run folder belongs to that run. Unreadable folders are skipped.
    """
    stamps: dict[str, str] = {}
    for root in map(make_absolute, roots):
        visited, pending = {os.path.realpath(root)}, [root]
        while pending:  # no recursion: folders may be nested deeper than Python's limit
            folder = pending.pop()
            entries = _list_entries(folder)
            if RECORD in entries or ADAPTER_CONFIG in entries:
                with suppress(OSError):  # deleted since it was listed
                    stamps[folder] = _build_stamp(folder, entries)
                continue
            is_tracker_store = TRACKED.fullmatch(os.path.basename(folder)) or any(
                name.endswith(STORE) for name in entries
            )
            skipped = {*([ATTEMPTS] if SUMMARY in entries else []), *([COPIES] if is_tracker_store else [])}
            others = (entry for entry in entries.values() if entry.name not in skipped)
            pending += [entry.path for entry in others if _should_descend(entry, visited)]
    return stamps


def make_absolute(path: str | Path) -> str:
    """A path in the form that the index stores: absolute, symlinks not resolved."""
    return os.path.abspath(Path(path).expanduser())


def read_stamp(folder: str) -> str | None:
    """The stamp of a run folder or adapter folder; None: it is neither."""
    entries = _list_entries(folder)
    return _build_stamp(folder, entries) if RECORD in entries or ADAPTER_CONFIG in entries else None


def _list_entries(folder: str) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}


def _should_descend(entry: os.DirEntry[str], visited: set[str]) -> bool:
    if entry.name.startswith(".") or entry.name in SKIPPED:
        return False
    try:
        if not entry.is_dir():
            return False
        if not entry.is_symlink():
            return True
    except OSError:
        return False
    target = os.path.realpath(entry.path)  # a link may point to a parent, or to a folder already visited
    if target in visited or f"{os.path.realpath(os.path.dirname(entry.path))}/".startswith(f"{target}/"):
        return False
    visited.add(target)
    return True


def _build_stamp(folder: str, entries: dict[str, os.DirEntry[str]]) -> str:
    values = [os.stat(folder).st_mtime_ns]  # nanoseconds; changes if an adapter is added or removed
    for name in (RECORD, CONFIG, ADAPTER_CONFIG):
        if name in entries:
            stat = entries[name].stat()
            values += [stat.st_mtime_ns, stat.st_size]
    return " ".join(map(str, values))


def find_containing_roots(folder: str, roots: Sequence[str]) -> Iterator[str]:
    """Those of `roots` that contain the folder."""
    for root in map(make_absolute, roots):
        if folder == root or folder.startswith(f"{root.rstrip(os.sep)}{os.sep}"):
            yield root
