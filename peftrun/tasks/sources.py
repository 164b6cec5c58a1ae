"""Rows as they lie in a file, an installed package or on the Hub."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from peftrun.errors import DataError
from peftrun.packages import package_dir
from peftrun.schema import DataSpec
from peftrun.tasks import translations

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
NO_ROWS = "corresponds to no data"  # how datasets says it


def read(data: DataSpec, key: str, path: str) -> list[dict[str, Any]]:
    """Every row of a source; of a streamed one no more than are asked for. `key`: its name in messages, `task.data.path=FILE`.

    Raises: DataError: it is empty, or cannot be read.
    """
    # What datasets logs as an error it also raises, and that is what the user is told.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    try:
        return _rows(data, key, path) or _fail(_no_rows(key))
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of a dozen libraries; each means that the rows cannot be had
        raise DataError(_no_rows(key) if NO_ROWS in str(error) else _unreadable(key, error, data, path)) from error


def file_of(data: DataSpec, path: str) -> Path:
    """Where a source of rows that is a file lies: in its package, or where the user says."""
    return (package_dir(data.package or "") or Path()) / path if data.source == "package" else Path(path).expanduser()


def _rows(data: DataSpec, key: str, path: str) -> list[dict[str, Any]]:
    if data.source == "hub":
        return _listed(data, path, revision=data.revision, split=data.split)
    file = file_of(data, path)
    if file.stat().st_size == 0:
        raise DataError(f"{key}: the file is empty; name a file with data")
    if file.suffix == ".po":
        return translations.read(file)
    options = {"delimiter": "\t"} if file.suffix == ".tsv" else {}
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise DataError(f"{key}: cannot tell its format; name a file that ends in {', '.join([*FORMATS, '.po'])}")
    # In a cache of its own: datasets knows a file again by its size and time alone, and would give the rows that it once had.
    with tempfile.TemporaryDirectory(prefix="peftrun-rows-") as room:
        return _listed(data, kind, data_files=str(file), split="train", cache_dir=room, **options)


def _listed(data: DataSpec, name: str, **how: Any) -> list[dict[str, Any]]:
    from datasets import Dataset, load_dataset

    rows = load_dataset(name, streaming=data.streaming, **how)
    if data.streaming:
        rows = Dataset.from_list(list(rows.take((data.train_rows or 0) + data.eval_rows)))
    return rows.to_list()


def _fail(line: str) -> Any:
    raise DataError(line)


def _no_rows(key: str) -> str:
    return f"{key}: holds no rows; name a file with data"


def _unreadable(key: str, error: BaseException, data: DataSpec, path: str) -> str:
    deepest = error.__cause__ or error
    reason = " ".join(str(deepest).split())[:200] or type(deepest).__name__
    if data.source == "hub":
        return f"{key}: cannot be read ({reason}); check the name and the connection"
    return f"{key}: cannot be read ({_broken_line(file_of(data, path)) or reason}); check the file"


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
