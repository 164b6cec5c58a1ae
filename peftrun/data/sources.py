"""Sources of rows: a file, an installed package, the Hub."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from peftrun.artifacts import remote_files
from peftrun.config.schema.run import DataSpec, MixtureSpec
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
    """One source of rows.

    Attributes:
        key: the config key that names it.
        name, revision, split: of a dataset on the Hub.
        shows_split: another split of the same dataset is read too.
    """

    key: str
    path: str
    name: str | None
    revision: str | None
    split: str
    shows_split: bool = False

    @property
    def label(self) -> str:
        """Its override, `task.data.path=FILE`, with the split if another one of the same dataset is read too."""
        return f"{self.key}={self.path}{f', split {self.split}' if self.shows_split else ''}"


def get_train_source(data: DataSpec) -> DataSource:
    """The source of training rows, and of evaluation rows unless they have a separate one."""
    return DataSource("task.data.path", data.path, data.config_name, data.revision, data.split)


def get_eval_source(data: DataSpec) -> DataSource | None:
    """The separate source of evaluation rows; None if they are split off the training rows."""
    if data.test_path is None and data.test_split is None:
        return None
    key = "task.data.path" if data.test_path is None else "task.data.test_path"
    same_dataset = data.test_path in (None, data.path)  # another dataset has other configurations and commits
    name, revision = (data.config_name, data.revision) if same_dataset else (None, None)
    shows_split = same_dataset and data.test_split is not None
    return DataSource(key, data.test_path or data.path, name, revision, data.test_split or data.split, shows_split)


def make_mix_source(name: str, mix: MixtureSpec, data: DataSpec) -> DataSource:
    """The source `task.data.mixture.NAME`."""
    return DataSource(
        f"task.data.mixture.{name}.path", mix.path, mix.config_name, mix.revision, mix.split or data.split
    )


def list_sources(data: DataSpec) -> list[DataSource]:
    """All sources of a task's rows."""
    eval_source = get_eval_source(data)
    mixed = [make_mix_source(name, mix, data) for name, mix in (data.mixture or {}).items()]
    return [get_train_source(data), *([eval_source] if eval_source else []), *mixed]


def read_source(data: DataSpec, source: DataSource) -> Iterator[Row]:
    """Yields the rows of a source; with `task.data.streaming` no more than are needed.

    Raises: DataError: it is empty, or cannot be read.
    """
    # datasets logs its errors before it raises them; the DataError below reports them once.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    row = None
    limit = (data.num_train_rows or 0) + data.num_test_rows if data.streaming else None
    try:
        for row in islice(_read_rows(data, source), limit):
            yield row
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of a dozen libraries without a common base class
        raise DataError(_explain_unreadable(source, error, data)) from error
    if row is None:
        raise DataError(f"{source.label}: holds no rows; name a file with data")


def resolve_source_file(data: DataSpec, source: DataSource) -> Path:
    """Path of a source that is a file: in its package, on disk, or downloaded into the cache.

    Raises: DataError: it has a URL, and cannot be downloaded.
    """
    if data.source == "package":
        return (find_package_dir(data.package or "") or Path()) / source.path
    return remote_files.locate_file(source.path, source.label)


def _read_rows(data: DataSpec, source: DataSource) -> Iterator[Row]:
    if data.source == "hub":
        yield from hub.load_hub_rows(source.path, source.name, source.revision, source.split, data.streaming)
        return
    file = resolve_source_file(data, source)
    if file.stat().st_size == 0:
        raise DataError(f"{source.label}: the file is empty; name a file with data")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{source.label}: cannot tell its format; name a file that ends in {', '.join(READERS)}")
    with file.open("rb") as stream:
        yield from reader(stream)


def _explain_unreadable(source: DataSource, error: BaseException, data: DataSpec) -> str:
    cause = error.__cause__ or error  # datasets wraps the error of the file's parser
    reason = " ".join(str(cause).split())[:200] or type(cause).__name__
    if isinstance(cause, UnicodeDecodeError):
        if data.source != "hub":  # the error has only the offset within a buffer
            file = resolve_source_file(data, source)
            with file.open("rb") as stream:
                delimiter = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
                reason = files.locate_invalid_utf8(stream, delimiter) or reason
        reason += "; save it as UTF-8"
    if data.source == "hub":
        return (
            f"{source.label}: cannot be read ({reason}); check it, task.data.config_name, the split and the connection"
        )
    return f"{source.label}: cannot be read ({reason}); check the file"
