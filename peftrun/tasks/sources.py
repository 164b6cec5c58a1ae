"""Rows as they lie in a file, an installed package or on the Hub."""

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.errors import DataError
from peftrun.packages import package_dir
from peftrun.schema import DataSpec, MixSpec
from peftrun.tasks import translations

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
NO_ROWS = "corresponds to no data"  # how datasets says it


@dataclass(frozen=True)
class Source:
    """One place that rows come from. `key` is what the config calls it; the last three are of a dataset on the Hub."""

    key: str
    path: str
    name: str | None
    revision: str | None
    split: str

    @property
    def told(self) -> str:
        """As it is typed: `task.data.path=FILE`."""
        return f"{self.key}={self.path}"


def first(data: DataSpec) -> Source:
    """Where training rows come from, and held-out ones unless they have a source of their own."""
    return Source("task.data.path", data.path, data.name, data.revision, data.split)


def held_out(data: DataSpec) -> Source | None:
    """Where held-out rows come from; None: they are split off."""
    if data.eval_path is None and data.eval_split is None:
        return None
    key = "task.data.path" if data.eval_path is None else "task.data.eval_path"
    here = data.eval_path in (None, data.path)  # another dataset has other configurations and commits
    name, revision = (data.name, data.revision) if here else (None, None)
    return Source(key, data.eval_path or data.path, name, revision, data.eval_split or data.split)


def further(name: str, one: MixSpec, data: DataSpec) -> Source:
    """The source that is mixed in under this name."""
    return Source(f"task.data.mix.{name}.path", one.path, one.name, one.revision, one.split or data.split)


def all_of(data: DataSpec) -> list[Source]:
    """Every source of a task's rows."""
    apart, mixed = held_out(data), data.mix or {}
    more = [further(name, one, data) for name, one in mixed.items()]
    return [first(data), *([apart] if apart else []), *more]


def read(data: DataSpec, source: Source) -> list[dict[str, Any]]:
    """Every row of a source; of a streamed one no more than are asked for.

    Raises: DataError: it is empty, or cannot be read.
    """
    # What datasets logs as an error it also raises, and that is what the user is told.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    try:
        return _rows(data, source) or _fail(_no_rows(source.told))
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of a dozen libraries; each means that the rows cannot be had
        raise DataError(_no_rows(source.told) if NO_ROWS in str(error) else _unreadable(source, error, data)) from error


def file_of(data: DataSpec, path: str) -> Path:
    """Where a source of rows that is a file lies: in its package, or where the user says."""
    return (package_dir(data.package or "") or Path()) / path if data.source == "package" else Path(path).expanduser()


def _rows(data: DataSpec, source: Source) -> list[dict[str, Any]]:
    if data.source == "hub":
        return _listed(data, source.path, name=source.name, revision=source.revision, split=source.split)
    file = file_of(data, source.path)
    if file.stat().st_size == 0:
        raise DataError(f"{source.told}: the file is empty; name a file with data")
    if file.suffix == ".po":
        return translations.read(file)
    options = {"delimiter": "\t"} if file.suffix == ".tsv" else {}
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise DataError(
            f"{source.told}: cannot tell its format; name a file that ends in {', '.join([*FORMATS, '.po'])}"
        )
    # In a cache of its own: datasets knows a file again by its size and time alone, and would give the rows that it once had.
    with tempfile.TemporaryDirectory(prefix="peftrun-rows-") as room:
        return _listed(data, kind, data_files=str(file), split="train", cache_dir=room, **options)


def _listed(data: DataSpec, path: str, **how: Any) -> list[dict[str, Any]]:
    from datasets import Dataset, load_dataset

    rows = load_dataset(path, streaming=data.streaming, **how)
    if data.streaming:
        rows = Dataset.from_list(list(rows.take((data.train_rows or 0) + data.eval_rows)))
    return rows.to_list()


def _fail(line: str) -> Any:
    raise DataError(line)


def _no_rows(key: str) -> str:
    return f"{key}: holds no rows; name a file with data"


def _unreadable(source: Source, error: BaseException, data: DataSpec) -> str:
    deepest = error.__cause__ or error
    reason = " ".join(str(deepest).split())[:200] or type(deepest).__name__
    if data.source == "hub":
        return f"{source.told}: cannot be read ({reason}); check it, task.data.name, the split and the connection"
    return f"{source.told}: cannot be read ({_broken_line(file_of(data, source.path)) or reason}); check the file"


def _broken_line(file: Path) -> str | None:
    """The first line of JSON lines that is none."""
    if file.suffix.lower() != ".jsonl" or not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line if line.strip() else "null")
            except ValueError as error:
                return f"line {number} is not JSON: {error}"
    return None
