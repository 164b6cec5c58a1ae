"""Reads rows of csv, tsv, json, jsonl and txt files one at a time, with values as spelled in the file."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from peftrun.data.cell_text import VerbatimNumber

Row = dict[str, Any]
# A byte that is not UTF-8, as Python decodes it with errors="surrogateescape".
INVALID_BYTE = re.compile("[\udc80-\udcff]")
UTF8 = "utf-8-sig"  # with or without a byte order mark
MAX_CELL_SIZE = 2**31 - 1  # characters; the largest C long on Windows
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character above U+FFFF, escaped in JSON
MAX_DIGITS = 300  # of an integer that is converted; Python refuses int ↔ str beyond 4,300 digits


class NumberedRow(Row):
    """A row with the line of its file on which it begins (from 1)."""

    def __init__(self, cells: Iterable[tuple[str, Any]], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_csv_rows(stream: BinaryIO, delimiter: str = ",", encoding: str = UTF8) -> Iterator[Row]:
    """Rows with each cell as text. Raises: ValueError: a row has more or fewer cells than the header."""
    csv.field_size_limit(MAX_CELL_SIZE)  # the default of 131,072 characters is too small for documents
    # Unless the reader is strict, an unclosed quote swallows the rows after it.
    lines = csv.reader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
    return _apply_header(_read_csv_cells(lines), f"put quotes around a cell with {delimiter!r} in it")


def read_tsv_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The same with tabs between cells and no quoting. Raises: ValueError: see `read_csv_rows`."""
    cells = ((number, line.split("\t")) for number, line in enumerate(iter_lines(stream, encoding), 1) if line)
    return _apply_header(cells, "a cell cannot hold a tab")


def read_json_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """The objects of a list, or one object per line, which some datasets call .json too. Raises: ValueError: it is neither."""
    first = stream.readline()
    lines = chain([first], stream)
    try:
        is_jsonl = isinstance(decode_json(first.decode(encoding)), dict)
    except ValueError:
        is_jsonl = False
    if is_jsonl:
        yield from read_jsonl_rows(lines, encoding)
        return
    values = decode_json(b"".join(lines).decode(encoding))
    if not isinstance(values, list):
        raise ValueError("it holds no list of objects; write [{…}, …], or an object a line")
    for number, value in enumerate(values, 1):
        yield _make_row(value, f"row {number}")


def read_jsonl_rows(lines: Iterable[bytes], encoding: str = UTF8) -> Iterator[Row]:
    """The object in each line; blank lines are skipped. Raises: ValueError: a line holds no object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = decode_json(line.decode(encoding))
        except UnicodeDecodeError:  # a ValueError too; `locate_invalid_utf8` finds its position in the file
            raise
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        yield _make_row(value, f"line {number}")


def read_text_rows(stream: BinaryIO, encoding: str = UTF8) -> Iterator[Row]:
    """Each line, in column `text`."""
    return ({"text": line} for line in iter_lines(stream, encoding))


def iter_lines(stream: BinaryIO, encoding: str = UTF8) -> Iterator[str]:
    """Lines that end with LF or CRLF, without the ending. Unlike str.splitlines, U+2028 and others do not end a line."""
    for line in io.TextIOWrapper(stream, encoding, newline="\n"):
        yield line.removesuffix("\n").removesuffix("\r")


def _read_csv_cells(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row begins, cells). Raises: ValueError: a quote is not closed."""
    row, begin = 0, 1
    try:
        for cells in reader:
            if cells:  # not a blank line
                yield begin, cells
                row += 1
            begin = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        where = format_row_location(row, begin) if row else "its header"
        raise ValueError(f"{where}: {error}; a cell that begins with a quote must end with one") from None


def format_row_location(row: int, line: int | None) -> str:
    """A row in messages, with its line in the file if lines and rows may differ."""
    return f"row {row}" if line is None else f"row {row} (line {line})"


def _apply_header(lines: Iterator[tuple[int, list[str]]], advice: str) -> Iterator[Row]:
    header = next((cells for _, cells in lines), [])
    for name in header:
        if name and header.count(name) > 1:  # columns without a name may repeat
            raise ValueError(f"its header names column {name} twice; rename one")
    for number, (line, cells) in enumerate(lines, 1):
        if len(cells) != len(header):
            fix = advice if len(cells) > len(header) else "write every cell, an empty one too"
            raise ValueError(
                f"{format_row_location(number, line)}: cells={len(cells)}, the header has {len(header)}; {fix}"
            )
        yield NumberedRow(zip(header, cells, strict=True), line)


def locate_invalid_utf8(stream: BinaryIO, delimiter: str | None) -> str | None:
    """Position of the first byte that is not UTF-8: line and character, and row and column of a file with `delimiter`; None if all is UTF-8."""
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


def decode_json(text: str) -> Any:
    """A JSON value in which each number keeps its spelling. Raises: ValueError: it is not JSON, or holds an unpaired surrogate."""
    value = _DECODER.decode(text)
    if SURROGATE.search(text):  # an unpaired one could be neither tokenized nor written to a file
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start]!r} is half of a character; write both halves") from None
    return value


def _make_row(value: Any, where: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object; write {{…}}")
    return value


def _parse_float(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else VerbatimNumber(text)


_DECODER = json.JSONDecoder(
    parse_int=lambda text: VerbatimNumber(text) if text == "-0" or len(text) > MAX_DIGITS else int(text),
    parse_float=_parse_float,
    strict=False,  # so that a tab or line end inside a text is allowed
)
