"""Rows as they lie in a file, an installed package or on the Hub."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from peftrun.config.schema.run import DataSpec, MixSpec
from peftrun.data import files, gettext_po, hub, tables
from peftrun.data.files import Row
from peftrun.errors import DataError
from peftrun.system.packages import find_package_dir

READERS: dict[str, Callable[[BinaryIO], Iterator[Row]]] = {
    ".csv": files.read_csv_rows,
    ".tsv": files.read_tsv_rows,
    ".json": files.read_json_rows,
    ".jsonl": files.read_jsonl_rows,
    ".parquet": tables.read_parquet_rows,
    ".arrow": tables.read_arrow_rows,
    ".txt": files.read_text_rows,
    ".po": lambda stream: iter(gettext_po.read_po_entries(Path(stream.name))),
}


@dataclass(frozen=True)
class DataSource:
    """One place that rows come from. `key` is what the config calls it; what follows `path` is of a dataset on the Hub. `beside`: another
    split of the same dataset is read too."""

    key: str
    path: str
    name: str | None
    revision: str | None
    split: str
    beside: bool = False

    @property
    def label(self) -> str:
        """As it is typed: `task.data.path=FILE`; with its split where another one of the same dataset is read too."""
        return f"{self.key}={self.path}{f', split {self.split}' if self.beside else ''}"


def get_train_source(data: DataSpec) -> DataSource:
    """Where training rows come from, and held-out ones unless they have a source of their own."""
    return DataSource("task.data.path", data.path, data.name, data.revision, data.split)


def get_eval_source(data: DataSpec) -> DataSource | None:
    """Where held-out rows come from; None: they are split off."""
    if data.eval_path is None and data.eval_split is None:
        return None
    key = "task.data.path" if data.eval_path is None else "task.data.eval_path"
    here = data.eval_path in (None, data.path)  # another dataset has other configurations and commits
    name, revision = (data.name, data.revision) if here else (None, None)
    beside = here and data.eval_split is not None
    return DataSource(key, data.eval_path or data.path, name, revision, data.eval_split or data.split, beside)


def make_mix_source(name: str, one: MixSpec, data: DataSpec) -> DataSource:
    """The source that is mixed in under this name."""
    return DataSource(f"task.data.mix.{name}.path", one.path, one.name, one.revision, one.split or data.split)


def list_sources(data: DataSpec) -> list[DataSource]:
    """Every source of a task's rows."""
    apart, mixed = get_eval_source(data), data.mix or {}
    more = [make_mix_source(name, one, data) for name, one in mixed.items()]
    return [get_train_source(data), *([apart] if apart else []), *more]


def read_source(data: DataSpec, source: DataSource) -> Iterator[Row]:
    """Every row of a source, one at a time; of a streamed one no more than are asked for.

    Raises: DataError: it is empty, or cannot be read.
    """
    # What datasets logs as an error it also raises, and that is what the user is told.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    row = None
    try:
        for row in islice(_read_rows(data, source), _count_needed_rows(data)):
            yield row
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of a dozen libraries; each means that the rows cannot be had
        raise DataError(_explain_unreadable(source, error, data)) from error
    if row is None:
        raise DataError(f"{source.label}: holds no rows; name a file with data")


def resolve_source_file(data: DataSpec, path: str) -> Path:
    """Where a source of rows that is a file lies: in its package, or where the user says."""
    return (
        (find_package_dir(data.package or "") or Path()) / path if data.source == "package" else Path(path).expanduser()
    )


def _count_needed_rows(data: DataSpec) -> int | None:
    return (data.train_rows or 0) + data.eval_rows if data.streaming else None


def _read_rows(data: DataSpec, source: DataSource) -> Iterator[Row]:
    if data.source == "hub":
        yield from hub.load_hub_rows(source.path, source.name, source.revision, source.split, data.streaming)
        return
    file = resolve_source_file(data, source.path)
    if file.stat().st_size == 0:
        raise DataError(f"{source.label}: the file is empty; name a file with data")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{source.label}: cannot tell its format; name a file that ends in {', '.join(READERS)}")
    with file.open("rb") as stream:
        yield from reader(stream)


def _locate_invalid_utf8(source: DataSource, data: DataSpec) -> str | None:
    """Where a file is not UTF-8; None where that cannot be told."""
    if data.source == "hub":
        return None
    file = resolve_source_file(data, source.path)
    with file.open("rb") as stream:
        return files.locate_invalid_utf8(stream, {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower()))


def _explain_unreadable(source: DataSource, error: BaseException, data: DataSpec) -> str:
    deepest = error.__cause__ or error
    reason = " ".join(str(deepest).split())[:200] or type(deepest).__name__
    if isinstance(deepest, UnicodeDecodeError):
        reason = f"{_locate_invalid_utf8(source, data) or reason}; save it as UTF-8"
    if data.source == "hub":
        return f"{source.label}: cannot be read ({reason}); check it, task.data.name, the split and the connection"
    return f"{source.label}: cannot be read ({reason}); check the file"
