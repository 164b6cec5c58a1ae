"""Rows of csv, tsv, json, jsonl and txt files, one at a time, each value as the file spells it."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from peftrun.data.cell_text import Number

Row = dict[str, Any]
DAMAGED = re.compile("[\udc80-\udcff]")  # a byte that is no UTF-8, as Python reads it with errors="surrogateescape"
UTF8 = "utf-8-sig"  # with a byte order mark or without
LONGEST_CELL = 2**31 - 1  # what a C long holds everywhere
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character above U+FFFF, as JSON may write it
DIGITS = 300  # of a number that is kept as one; Python refuses to spell some of more than 4,300


class InLine(Row):
    """A row that knows on which line of its file it begins."""

    def __init__(self, cells: Iterable[tuple[str, Any]], line: int) -> None:
        super().__init__(cells)
        self.line = line


def csv_rows(stream: BinaryIO, delimiter: str = ",", encoding: str = UTF8) -> Iterator[Row]:
    """Every cell as it is spelled; only an empty one is empty. Raises: ValueError: a row has not as many cells as the header."""
    csv.field_size_limit(LONGEST_CELL)
    # A quote that nothing closes swallows rows unless the reader is strict.
    lines = csv.reader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
    return _under_header(_of_csv(lines), f"put quotes around a cell with {delimiter!r} in it")


def tsv_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The same of cells that tabs part; a quote is a character like others. Raises: ValueError: see `csv_rows`."""
    cells = ((number, line.split("\t")) for number, line in enumerate(lines_of(stream, encoding), 1) if line)
    return _under_header(cells, "a cell cannot hold a tab")


def json_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The objects of a list; or an object a line, which some data sets call .json too. Raises: ValueError: it is neither."""
    first = stream.readline()
    lines = chain([first], stream)
    if _is_object(first, encoding):
        yield from jsonl_rows(lines, encoding)
        return
    listed = _decode(b"".join(lines), encoding)
    if not isinstance(listed, list):
        raise ValueError("it holds no list of objects; write [{…}, …], or an object a line")
    for number, value in enumerate(listed, 1):
        yield _row(value, f"row {number}")


def jsonl_rows(lines: Iterable[bytes], encoding: str = UTF8) -> Iterator[Row]:
    """The object in each line. Raises: ValueError: a line holds none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = _decode(line, encoding)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        yield _row(value, f"line {number}")


def text_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """Each line, in column `text`."""
    return ({"text": line} for line in lines_of(stream, encoding))


def lines_of(stream: BinaryIO, encoding: str = UTF8) -> Iterator[str]:
    """What lies between line feeds, a carriage return before one left out. Nothing else ends a line: U+2028 is a character."""
    for line in io.TextIOWrapper(stream, encoding, newline="\n"):
        yield line.removesuffix("\n").removesuffix("\r")


def _of_csv(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with the line on which it begins. Raises: ValueError: a quote is not closed."""
    row, begin = 0, 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
                row += 1
            begin = reader.line_num + 1
    except csv.Error as error:
        where = place(row, begin) if row else "its header"
        raise ValueError(f"{where}: {error}; a cell that begins with a quote must end with one") from None


def place(row: int, line: int | None) -> str:
    """A row as messages name it; with its line in the file, where a line is no row."""
    return f"row {row}" if line is None else f"row {row} (line {line})"


def _under_header(lines: Iterator[tuple[int, list[str]]], advice: str) -> Iterator[Row]:
    header = next((cells for _, cells in lines), [])
    named = [name for name in header if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"its header names column {twice} twice; rename one")
    for number, (line, cells) in enumerate(lines, 1):
        if len(cells) != len(header):
            mended = advice if len(cells) > len(header) else "write every cell, an empty one too"
            raise ValueError(f"{place(number, line)}: cells={len(cells)}, the header has {len(header)}; {mended}")
        yield InLine(zip(header, cells, strict=True), line)


def not_utf8(stream: BinaryIO, delimiter: str | None) -> str | None:
    """Where a file holds the first byte that is no UTF-8, by line and column, and by row where `delimiter` parts cells; None: nowhere."""
    for number, line in enumerate(stream, 1):
        try:
            line.decode(UTF8)
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode(UTF8)) + 1
            where = f"line {number}, character {column}: byte 0x{line[error.start]:02x}"
            stream.seek(0)
            return f"{_row_of_damage(stream, delimiter)}{where} is not UTF-8"
    return None


def _row_of_damage(stream: BinaryIO, delimiter: str | None) -> str:
    if delimiter is None:
        return ""
    text = io.TextIOWrapper(stream, UTF8, errors="surrogateescape", newline="")
    header: list[str] = []
    for row, cells in enumerate(filter(None, csv.reader(text, delimiter=delimiter))):
        header = header or cells
        for name, cell in zip(header, cells, strict=False):
            if DAMAGED.search(cell):
                return f"row {row}, column {name}, " if row else "its header, "
    return ""


def _is_object(line: bytes, encoding: str) -> bool:
    try:
        return isinstance(_decode(line, encoding), dict)
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


def _decode(raw: bytes, encoding: str) -> Any:
    return decode_json(raw.decode(encoding))


def _row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object; write {{…}}")
    return value


def _integer(text: str) -> int | Number:
    return Number(text) if text == "-0" or len(text) > DIGITS else int(text)


def _fraction(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else Number(text)


# Not strict: a tab or a line end inside a text is what the file says.
_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_fraction, strict=False)
