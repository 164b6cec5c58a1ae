"""Rows of parquet and Arrow files and of data sets on the Hub, one at a time, by the types of their columns."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from peftrun.data.files import Row, decode_json

BATCH_ROWS = 1000  # that are Python objects at a time


def read_parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of a parquet file."""
    from pyarrow import parquet

    return convert_batches(parquet.ParquetFile(stream).iter_batches(BATCH_ROWS))


def read_arrow_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of an Arrow file, in either of Arrow's two layouts."""
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return convert_batches(pa.ipc.open_stream(stream))
    return convert_batches(file.get_batch(number) for number in range(file.num_record_batches))


def convert_batches(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """The rows as Python values: numbers with the digits of their own width, JSON as what it holds."""
    for batch in batches:
        convert = _build_converter(pa.struct(batch.schema))
        for start in range(0, batch.num_rows, BATCH_ROWS):
            rows = batch.slice(start, BATCH_ROWS).to_pylist(maps_as_pydicts="strict")
            yield from map(convert, rows) if convert else rows


Converter = Callable[[Any], Any]


def _build_converter(kind: pa.DataType) -> Converter | None:
    """What makes a Python value the one that is meant; None where it is that already."""
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        narrow = kind.to_pandas_dtype()
        return _skip_null(lambda value: float(str(narrow(value))))  # 0.1, not 0.10000000149011612
    if isinstance(kind, pa.JsonType):
        return _skip_null(decode_json)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _build_list_converter(_build_converter(kind.value_type))
    if pa.types.is_struct(kind):
        return _build_struct_converter({field.name: one for field in kind if (one := _build_converter(field.type))})
    return None


def _build_list_converter(one: Converter | None) -> Converter | None:
    return None if one is None else _skip_null(lambda values: [one(value) for value in values])


def _build_struct_converter(fields: dict[str, Converter]) -> Converter | None:
    if not fields:
        return None
    return _skip_null(lambda row: row | {name: convert(row[name]) for name, convert in fields.items()})


def _skip_null(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)
