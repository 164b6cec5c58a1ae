"""The index of runs: an SQLite file in the user's cache that spares reading records again. The records stay the truth.

It is made anew whenever it cannot be used: torn, of another version, gone. Where it cannot be written, or another process holds it, what
was read serves this once.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.config import paths
from peftrun.results.catalog import liveness, record_reader, scan

VERSION = 2  # of what `reading` keeps: other facts, another number
FILE = "catalogue.sqlite"
TORN = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # the first: another table than ours
PATIENCE = 2.0  # seconds that another process may hold the file
TABLE = "CREATE TABLE runs (folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, facts TEXT NOT NULL, config TEXT NOT NULL)"
Values = dict[str, Any]


@dataclass(frozen=True)
class IndexedRun:
    """A run, or an adapter outside one: its absolute folder and its facts as they are now. `config`: as full keys, where it was asked for."""

    folder: str
    facts: Values
    config: Values


def load_runs(roots: Sequence[str], with_config: bool = False) -> list[IndexedRun]:
    """Every run below `roots`, as its files are now; no order."""
    stamps = scan.find_run_folders(roots)
    kept = _IndexDb.opened()
    known = kept.rows(roots, with_config)
    fresh = {
        folder: _read_row(folder, stamp) for folder, stamp in stamps.items() if known.get(folder, ("",))[0] != stamp
    }
    kept.replace(fresh, known.keys() - stamps.keys())
    return [_build_run(folder, (fresh.get(folder) or known[folder])) for folder in stamps]


def load_run(folder: str) -> IndexedRun | None:
    """A folder by itself, read now; None: it is no run and holds no adapter."""
    stamp = scan.read_stamp(folder)
    return _build_run(folder, _read_row(folder, stamp)) if stamp else None


def get_index_path() -> Path:
    """Where the index is."""
    return paths.cache_dir() / FILE


_Row = tuple[str, str, str]  # stamp, facts, config


def _read_row(folder: str, stamp: str) -> _Row:
    facts, config = record_reader.read_run_folder(folder)
    return stamp, json.dumps(facts, default=str), json.dumps(config, default=str)


def _build_run(folder: str, row: _Row) -> IndexedRun:
    return IndexedRun(folder, liveness.refresh_facts(folder, json.loads(row[1])), json.loads(row[2]))


class _IndexDb:
    """What the file holds. `at`: None where there is none that can be used now."""

    def __init__(self, at: Path | None) -> None:
        self.at = at

    @classmethod
    def opened(cls) -> "_IndexDb":
        """The file, made where it was not there, made anew where it is torn or of another version."""
        at = get_index_path()
        for _ in range(2):
            try:
                at.parent.mkdir(parents=True, exist_ok=True)
                _prepare_schema(at)
                return cls(at)
            except sqlite3.Error as error:
                if not _remove_if_torn(at, error):  # held by another process, or not to be written
                    break
            except OSError:
                break
        return cls(None)

    def rows(self, roots: Sequence[str], with_config: bool) -> dict[str, _Row]:
        """Folder → row of all that is known below `roots`."""
        try:
            return self._select_rows(roots, "config" if with_config else "'{}'") if self.at else {}
        except sqlite3.Error as error:
            assert self.at
            self.at = _IndexDb.opened().at if _remove_if_torn(self.at, error) else None
            return {}

    def _select_rows(self, roots: Sequence[str], config: str) -> dict[str, _Row]:
        assert self.at
        found: dict[str, _Row] = {}
        with closing(_connect_db(self.at)) as base:
            for low, high in map(_build_folder_range, roots):
                asked = f"SELECT folder, stamp, facts, {config} FROM runs WHERE folder >= ? AND folder < ?"
                found |= {folder: (stamp, facts, own) for folder, stamp, facts, own in base.execute(asked, (low, high))}
        return found

    def replace(self, fresh: dict[str, _Row], gone: Iterable[str]) -> None:
        """Keeps what was read and forgets what is gone; nothing where the file cannot be written."""
        missing = [(folder,) for folder in gone]
        if self.at is None or not (fresh or missing):
            return
        with suppress(sqlite3.Error), closing(_connect_db(self.at)) as base, base:
            base.executemany("DELETE FROM runs WHERE folder = ?", missing)
            base.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", _flatten_rows(fresh))


def _remove_if_torn(at: Path, error: sqlite3.Error) -> bool:
    """Whether the file was at fault, and not its surroundings; it is gone then."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in TORN:
        return False
    with suppress(OSError):
        os.unlink(at)
        return True
    return False


def _flatten_rows(fresh: dict[str, _Row]) -> Iterator[tuple[str, ...]]:
    return ((folder, *row) for folder, row in fresh.items())


def _connect_db(at: Path) -> sqlite3.Connection:
    return sqlite3.connect(at, timeout=PATIENCE)


def _prepare_schema(at: Path) -> None:
    """Raises: sqlite3.DatabaseError: the file is torn."""
    with closing(_connect_db(at)) as base:
        if base.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            base.execute("SELECT folder FROM runs LIMIT 1")
            return
        base.execute("BEGIN IMMEDIATE")
        if base.execute("PRAGMA user_version").fetchone()[0] != VERSION:  # nobody else was faster
            base.execute("DROP TABLE IF EXISTS runs")
            base.execute(TABLE)
            base.execute(f"PRAGMA user_version = {VERSION}")
        base.commit()


def _build_folder_range(root: str) -> tuple[str, str]:
    """Of the folders that lie in `root`: from, and up to."""
    at = scan.make_absolute(root).rstrip(os.sep)
    return f"{at}{os.sep}", f"{at}{chr(ord(os.sep) + 1)}"
