"""Rows of parquet and Arrow files and of data sets on the Hub, one at a time, by the types of their columns."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from peftrun.data.files import Row, decode_json

ROWS = 1000  # that are Python objects at a time


def parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of a parquet file."""
    from pyarrow import parquet

    return rows_of(parquet.ParquetFile(stream).iter_batches(ROWS))


def arrow_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of an Arrow file, in either of Arrow's two layouts."""
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return rows_of(pa.ipc.open_stream(stream))
    return rows_of(file.get_batch(number) for number in range(file.num_record_batches))


def rows_of(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """The rows as Python values: numbers with the digits of their own width, JSON as what it holds."""
    for batch in batches:
        convert = _converter(pa.struct(batch.schema))
        for start in range(0, batch.num_rows, ROWS):
            rows = batch.slice(start, ROWS).to_pylist(maps_as_pydicts="strict")
            yield from map(convert, rows) if convert else rows


Converter = Callable[[Any], Any]


def _converter(kind: pa.DataType) -> Converter | None:
    """What makes a Python value the one that is meant; None where it is that already."""
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        narrow = kind.to_pandas_dtype()
        return _unless_null(lambda value: float(str(narrow(value))))  # 0.1, not 0.10000000149011612
    if isinstance(kind, pa.JsonType):
        return _unless_null(decode_json)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _of_list(_converter(kind.value_type))
    if pa.types.is_struct(kind):
        return _of_struct({field.name: one for field in kind if (one := _converter(field.type))})
    return None


def _of_list(one: Converter | None) -> Converter | None:
    return None if one is None else _unless_null(lambda values: [one(value) for value in values])


def _of_struct(fields: dict[str, Converter]) -> Converter | None:
    if not fields:
        return None
    return _unless_null(lambda row: row | {name: convert(row[name]) for name, convert in fields.items()})


def _unless_null(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)
