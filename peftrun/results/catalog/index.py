"""Index of runs: an SQLite file in the user's cache that saves reading the records again. The records stay the source of truth.

The index is rebuilt if it is corrupt, of another version, or missing. If it cannot be written, or another process holds its lock, the
rows just read are used without storing them.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.config import paths
from peftrun.results.catalog import liveness, record_reader, scan

VERSION = 4  # of the rows that `record_reader` yields; raise it when the facts change
FILE = "catalogue.sqlite"
CORRUPT = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # the first: a table with other columns
LOCK_TIMEOUT = 2.0  # seconds to wait for another process
TABLE = "CREATE TABLE runs (folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, facts TEXT NOT NULL, config TEXT NOT NULL)"
Values = dict[str, Any]


@dataclass(frozen=True)
class IndexedRun:
    """A run, or an adapter outside a run: absolute folder, current facts, and the config by full key if it was requested."""

    folder: str
    facts: Values
    config: Values


def load_runs(roots: Sequence[str], with_config: bool = False) -> list[IndexedRun]:
    """Every run below `roots`, as its files are now; unordered."""
    stamps = scan.find_run_folders(roots)
    database = _IndexDb.open()
    stored = database.load_rows(roots, with_config)
    # A stamp holds times and sizes of a run's files: an unequal one means that the row is outdated.
    updated = {
        folder: _read_row(folder, stamp) for folder, stamp in stamps.items() if stored.get(folder, ("",))[0] != stamp
    }
    database.store_rows(updated, stored.keys() - stamps.keys())
    return [_build_run(folder, updated.get(folder) or stored[folder]) for folder in stamps]


def load_run(folder: str) -> IndexedRun | None:
    """One folder, read now; None: it is no run and holds no adapter."""
    stamp = scan.read_stamp(folder)
    return _build_run(folder, _read_row(folder, stamp)) if stamp else None


def get_index_path() -> Path:
    """Path of the index file."""
    return paths.cache_dir() / FILE


_Row = tuple[str, str, str]  # stamp; facts and config as JSON


def _read_row(folder: str, stamp: str) -> _Row:
    facts, config = record_reader.read_run_folder(folder)
    return stamp, json.dumps(facts, default=str), json.dumps(config, default=str)


def _build_run(folder: str, row: _Row) -> IndexedRun:
    return IndexedRun(folder, liveness.refresh_facts(folder, json.loads(row[1])), json.loads(row[2]))


class _IndexDb:
    """The index file. `path`: None if it cannot be used now."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def open(cls) -> "_IndexDb":
        """The file, created if missing, recreated if it is corrupt or of another version."""
        path = get_index_path()
        for _ in range(2):  # a second time after a corrupt file was removed
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _prepare_schema(path)
                return cls(path)
            except sqlite3.Error as error:
                if not _remove_if_corrupt(path, error):  # locked by another process, or read-only
                    break
            except OSError:
                break
        return cls(None)

    def load_rows(self, roots: Sequence[str], with_config: bool) -> dict[str, _Row]:
        """Folder → stored row, for all folders below `roots`."""
        if self.path is None:
            return {}
        config_column = "config" if with_config else "'{}'"  # configs are most of the file's bytes
        query = f"SELECT folder, stamp, facts, {config_column} FROM runs WHERE folder >= ? AND folder < ?"
        rows: dict[str, _Row] = {}
        try:
            with closing(_connect_db(self.path)) as database:
                for root in roots:
                    # All texts that start with `ROOT/`: a range over the primary key, which LIKE would not use.
                    prefix = scan.make_absolute(root).rstrip(os.sep)
                    bounds = (f"{prefix}{os.sep}", f"{prefix}{chr(ord(os.sep) + 1)}")
                    rows |= {
                        folder: (stamp, facts, config)
                        for folder, stamp, facts, config in database.execute(query, bounds)
                    }
        except sqlite3.Error as error:
            self.path = _IndexDb.open().path if _remove_if_corrupt(self.path, error) else None
            return {}
        return rows

    def store_rows(self, updated: dict[str, _Row], deleted: Iterable[str]) -> None:
        """Store the rows just read and delete those of folders that are gone; does nothing if the file cannot be written."""
        folders = [(folder,) for folder in deleted]
        if self.path is None or not (updated or folders):
            return
        # The inner context commits, or rolls back on an error; it does not close the connection.
        with suppress(sqlite3.Error), closing(_connect_db(self.path)) as database, database:
            database.executemany("DELETE FROM runs WHERE folder = ?", folders)
            database.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", ((folder, *row) for folder, row in updated.items())
            )


def _remove_if_corrupt(path: Path, error: sqlite3.Error) -> bool:
    """Delete the file if the error says that it is corrupt; whether it was deleted."""
    # The low byte is the primary result code; the others tell details.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in CORRUPT:
        return False
    with suppress(OSError):
        os.unlink(path)
        return True
    return False


def _connect_db(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=LOCK_TIMEOUT)


def _prepare_schema(path: Path) -> None:
    """Create the table unless it is there in this version. Raises: sqlite3.DatabaseError: the file is corrupt."""
    with closing(_connect_db(path)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] == VERSION:
            database.execute("SELECT folder FROM runs LIMIT 1")
            return
        # Takes the write lock now, then looks again: another process may have created the table meanwhile.
        database.execute("BEGIN IMMEDIATE")
        if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            database.execute("DROP TABLE IF EXISTS runs")
            database.execute(TABLE)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.commit()
