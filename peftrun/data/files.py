"""Rows of csv, tsv, json, jsonl and txt files, one at a time, each value as the file spells it."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from peftrun.data.cell_text import VerbatimNumber

Row = dict[str, Any]
INVALID_BYTE = re.compile(
    "[\udc80-\udcff]"
)  # a byte that is no UTF-8, as Python reads it with errors="surrogateescape"
UTF8 = "utf-8-sig"  # with a byte order mark or without
MAX_CELL_SIZE = 2**31 - 1  # what a C long holds everywhere
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character above U+FFFF, as JSON may write it
MAX_DIGITS = 300  # of a number that is kept as one; Python refuses to spell some of more than 4,300


class NumberedRow(Row):
    """A row that knows on which line of its file it begins."""

    def __init__(self, cells: Iterable[tuple[str, Any]], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_csv_rows(stream: BinaryIO, delimiter: str = ",", encoding: str = UTF8) -> Iterator[Row]:
    """Every cell as it is spelled; only an empty one is empty. Raises: ValueError: a row has not as many cells as the header."""
    csv.field_size_limit(MAX_CELL_SIZE)
    # A quote that nothing closes swallows rows unless the reader is strict.
    lines = csv.reader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
    return _apply_header(_read_csv_cells(lines), f"put quotes around a cell with {delimiter!r} in it")


def read_tsv_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The same of cells that tabs part; a quote is a character like others. Raises: ValueError: see `csv_rows`."""
    cells = ((number, line.split("\t")) for number, line in enumerate(iter_lines(stream, encoding), 1) if line)
    return _apply_header(cells, "a cell cannot hold a tab")


def read_json_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The objects of a list; or an object a line, which some data sets call .json too. Raises: ValueError: it is neither."""
    first = stream.readline()
    lines = chain([first], stream)
    if _is_object(first, encoding):
        yield from read_jsonl_rows(lines, encoding)
        return
    listed = _decode_bytes(b"".join(lines), encoding)
    if not isinstance(listed, list):
        raise ValueError("it holds no list of objects; write [{…}, …], or an object a line")
    for number, value in enumerate(listed, 1):
        yield _make_row(value, f"row {number}")


def read_jsonl_rows(lines: Iterable[bytes], encoding: str = UTF8) -> Iterator[Row]:
    """The object in each line. Raises: ValueError: a line holds none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = _decode_bytes(line, encoding)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        yield _make_row(value, f"line {number}")


def read_text_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """Each line, in column `text`."""
    return ({"text": line} for line in iter_lines(stream, encoding))


def iter_lines(stream: BinaryIO, encoding: str = UTF8) -> Iterator[str]:
    """What lies between line feeds, a carriage return before one left out. Nothing else ends a line: U+2028 is a character."""
    for line in io.TextIOWrapper(stream, encoding, newline="\n"):
        yield line.removesuffix("\n").removesuffix("\r")


def _read_csv_cells(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with the line on which it begins. Raises: ValueError: a quote is not closed."""
    row, begin = 0, 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
                row += 1
            begin = reader.line_num + 1
    except csv.Error as error:
        where = format_row_location(row, begin) if row else "its header"
        raise ValueError(f"{where}: {error}; a cell that begins with a quote must end with one") from None


def format_row_location(row: int, line: int | None) -> str:
    """A row as messages name it; with its line in the file, where a line is no row."""
    return f"row {row}" if line is None else f"row {row} (line {line})"


def _apply_header(lines: Iterator[tuple[int, list[str]]], advice: str) -> Iterator[Row]:
    header = next((cells for _, cells in lines), [])
    named = [name for name in header if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"its header names column {twice} twice; rename one")
    for number, (line, cells) in enumerate(lines, 1):
        if len(cells) != len(header):
            mended = advice if len(cells) > len(header) else "write every cell, an empty one too"
            raise ValueError(
                f"{format_row_location(number, line)}: cells={len(cells)}, the header has {len(header)}; {mended}"
            )
        yield NumberedRow(zip(header, cells, strict=True), line)


def locate_invalid_utf8(stream: BinaryIO, delimiter: str | None) -> str | None:
    """Where a file holds the first byte that is no UTF-8, by line and column, and by row where `delimiter` parts cells; None: nowhere."""
    for number, line in enumerate(stream, 1):
        try:
            line.decode(UTF8)
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode(UTF8)) + 1
            where = f"line {number}, character {column}: byte 0x{line[error.start]:02x}"
            stream.seek(0)
            return f"{_locate_invalid_cell(stream, delimiter)}{where} is not UTF-8"
    return None


def _locate_invalid_cell(stream: BinaryIO, delimiter: str | None) -> str:
    if delimiter is None:
        return ""
    text = io.TextIOWrapper(stream, UTF8, errors="surrogateescape", newline="")
    header: list[str] = []
    for row, cells in enumerate(filter(None, csv.reader(text, delimiter=delimiter))):
        header = header or cells
        for name, cell in zip(header, cells, strict=False):
            if INVALID_BYTE.search(cell):
                return f"row {row}, column {name}, " if row else "its header, "
    return ""


def _is_object(line: bytes, encoding: str) -> bool:
    try:
        return isinstance(_decode_bytes(line, encoding), dict)
    except ValueError:
        return False


def decode_json(text: str) -> Any:
    """A JSON value in which each number keeps its spelling. Raises: ValueError: it is none, or holds half of a character."""
    value = _DECODER.decode(text)
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start]!r} is half of a character; write both halves") from None
    return value


def _decode_bytes(raw: bytes, encoding: str) -> Any:
    return decode_json(raw.decode(encoding))


def _make_row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object; write {{…}}")
    return value


def _parse_integer(text: str) -> int | VerbatimNumber:
    return VerbatimNumber(text) if text == "-0" or len(text) > MAX_DIGITS else int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else VerbatimNumber(text)


# Not strict: a tab or a line end inside a text is what the file says.
_DECODER = json.JSONDecoder(parse_int=_parse_integer, parse_float=_parse_float, strict=False)
