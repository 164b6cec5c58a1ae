"""Reads rows of parquet and Arrow files and of datasets on the Hub one at a time, by the types of their columns."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from peftrun.data.files import Row, decode_json

BATCH_ROWS = 1000  # rows converted at a time, which bounds the memory for Python objects


def read_parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of a parquet file."""
    from pyarrow import parquet

    return convert_batches(parquet.ParquetFile(stream).iter_batches(BATCH_ROWS))


def read_arrow_rows(stream: BinaryIO) -> Iterator[Row]:
    """Every row of an Arrow file, in the file or the stream format."""
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return convert_batches(pa.ipc.open_stream(stream))
    return convert_batches(file.get_batch(number) for number in range(file.num_record_batches))


def convert_batches(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """Rows as Python values: floats with the digits of their own width, JSON columns parsed."""
    for batch in batches:
        convert = _build_converter(pa.struct(batch.schema))
        for start in range(0, batch.num_rows, BATCH_ROWS):
            rows = batch.slice(start, BATCH_ROWS).to_pylist(maps_as_pydicts="strict")
            yield from map(convert, rows) if convert else rows


Converter = Callable[[Any], Any]


def _build_converter(dtype: pa.DataType) -> Converter | None:
    """Converter of pyarrow's Python values of a type; None if they need no conversion."""
    if pa.types.is_float16(dtype) or pa.types.is_float32(dtype):
        narrow = dtype.to_pandas_dtype()
        return _skip_null(lambda value: float(str(narrow(value))))  # 0.1, not 0.10000000149011612
    if isinstance(dtype, pa.JsonType):
        return _skip_null(decode_json)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        item = _build_converter(dtype.value_type)
        return _skip_null(lambda values: [item(value) for value in values]) if item else None
    if pa.types.is_struct(dtype):
        fields = {field.name: convert for field in dtype if (convert := _build_converter(field.type))}
        return _skip_null(lambda row: row | {name: fields[name](row[name]) for name in fields}) if fields else None
    return None


def _skip_null(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)
