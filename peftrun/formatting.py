"""Numbers, durations, sizes, values of a config and tables as text: the one place for each.

Sizes are decimal (1 GB = 10⁹ bytes), as disks and model pages state them; KiB, MiB and GiB are only read.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeGuard

COLUMN_GAP = "  "
BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is an int or float. bool is a subclass of int, and excluded."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number other than NaN and infinity."""
    return is_number(value) and math.isfinite(value)


def format_figure(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"


def format_number(value: Any) -> str:
    """A number with four significant digits and thousands separators; a dash for what is no number."""
    if not is_number(value):
        return "–"
    if not math.isfinite(value):
        return "no finite number"  # NaN or infinity
    whole = isinstance(value, int) or abs(value) >= 10_000
    return f"{value:,.0f}" if whole else f"{value:.4g}".replace("e-0", "e-")


def format_signed(value: float) -> str:
    """A difference with its sign (U+2212 for minus)."""
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{format_figure(abs(value))}"


def format_metrics(values: Mapping[str, Any]) -> str:
    """Names and numbers on one line; values that are no numbers as they are."""
    return " · ".join(f"{key} {format_number(value) if is_number(value) else value}" for key, value in values.items())


def format_value(value: Any) -> str:
    """A value of a config on one line, as on the command line: true, null, [q_proj,v_proj].

    Text that is empty, or begins or ends with a space, or holds a line end, is shown as JSON.
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def format_duration(seconds: float | None) -> str:
    """A duration with two units: 4.25 s, 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def format_bytes(count: float) -> str:
    """A number of bytes in the largest unit that it reaches: 37 kB, 9.82 MB, 538 MB, 24.71 GB (10⁹ bytes)."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count:.0f} bytes"


def parse_bytes(text: object) -> int | None:
    """Bytes of `4GiB` or `60KB`; None if the text is no amount of memory."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)", str(text))
    unit = match[2].upper() if match else None
    return int(float(match[1]) * BYTE_UNITS[unit]) if match and unit in BYTE_UNITS else None


def shorten_keys(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key; the whole key where several share it."""
    names = [key.rpartition(".")[2] for key in keys]
    return [name if names.count(name) == 1 else key for key, name in zip(keys, names, strict=True)]


def select_finite(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows in which `key` is a finite number; the last one of several with the same step."""
    points = [
        (float(row["step"]), float(row[key])) for row in rows if is_finite(row.get(key)) and is_finite(row.get("step"))
    ]
    return [[*group][-1] for _, group in groupby(sorted(points), key=lambda point: point[0])]


def format_count(count: Any, what: str) -> str:
    """A count with its noun in singular or plural: 1 row, 2 rows."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def align_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        COLUMN_GAP.join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
        for row in rows
    ]
