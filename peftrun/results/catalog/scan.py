"""Where runs and adapters lie below some folders, and what tells that one of them has changed. Nothing is opened."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from peftrun.artifacts.run_layout import ADAPTER_CONFIG, CHECKPOINTS, CONFIG, RECORD

ATTEMPTS, SUMMARY = "attempts", "sweep.json"  # of a sweep: what earlier attempts left is no run of its own
SKIPPED = {CHECKPOINTS, "__pycache__", "node_modules"}
COPIES, STORE = "artifacts", ".db"  # a tracker keeps copies of records and adapters there, beside its file
TRACKED = re.compile(r"[0-9a-f]{32}")  # how MLflow names the folder of one of its runs


def find_run_folders(roots: Sequence[str]) -> dict[str, str]:
    """Absolute folder of every run, and of every adapter outside a run → its stamp, which differs as soon as the folder must be read again.

    What lies in a run folder belongs to that run. Folders that cannot be read are passed over.
    """
    stamps: dict[str, str] = {}
    for root in map(make_absolute, roots):
        stamps |= _scan_below(root, {os.path.realpath(root)})
    return stamps


def make_absolute(path: str | Path) -> str:
    """A path as the index knows it: absolute, links as they are."""
    return os.path.abspath(Path(path).expanduser())


def read_stamp(folder: str) -> str | None:
    """The stamp of one run folder or adapter folder; None: it is neither."""
    entries = _list_entries(folder)
    return _build_stamp(folder, entries) if RECORD in entries or ADAPTER_CONFIG in entries else None


def _scan_below(folder: str, seen: set[str]) -> dict[str, str]:
    """A folder and those below it. A loop, since folders may be nested deeper than calls."""
    stamps: dict[str, str] = {}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        entries = _list_entries(here)
        if RECORD in entries or ADAPTER_CONFIG in entries:
            with suppress(OSError):  # removed meanwhile
                stamps[here] = _build_stamp(here, entries)
            continue
        passed = {*([ATTEMPTS] if SUMMARY in entries else []), *([COPIES] if _is_store(here, entries) else [])}
        waiting += [
            entry.path for entry in entries.values() if entry.name not in passed and _should_descend(entry, seen)
        ]
    return stamps


def _list_entries(folder: str) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return {entry.name: entry for entry in found}
    except OSError:
        return {}


def _is_store(folder: str, entries: dict[str, os.DirEntry[str]]) -> bool:
    """Whether a tracker keeps its runs here: what it has copied is no run of its own."""
    return TRACKED.fullmatch(os.path.basename(folder)) is not None or any(name.endswith(STORE) for name in entries)


def _should_descend(entry: os.DirEntry[str], seen: set[str]) -> bool:
    if entry.name.startswith(".") or entry.name in SKIPPED:
        return False
    try:
        if not entry.is_dir():
            return False
        if not entry.is_symlink():
            return True
    except OSError:
        return False
    target = os.path.realpath(entry.path)  # a link may lead back up, or to a place that was seen
    if target in seen or f"{os.path.realpath(os.path.dirname(entry.path))}/".startswith(f"{target}/"):
        return False
    seen.add(target)
    return True


def _build_stamp(folder: str, entries: dict[str, os.DirEntry[str]]) -> str:
    parts = [os.stat(folder).st_mtime_ns]  # an adapter was saved, or taken away
    for name in (RECORD, CONFIG, ADAPTER_CONFIG):
        if name in entries:
            info = entries[name].stat()
            parts += [info.st_mtime_ns, info.st_size]
    return " ".join(map(str, parts))


def find_containing_roots(folder: str, roots: Sequence[str]) -> Iterator[str]:
    """Those of `roots` that a folder lies in."""
    for root in map(make_absolute, roots):
        if folder == root or folder.startswith(f"{root.rstrip(os.sep)}{os.sep}"):
            yield root
