"""Numbers, durations, sizes and tables as text."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeGuard

COLUMN_GAP = "  "


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


def format_duration(seconds: float) -> str:
    """A duration with two units: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(count: float) -> str:
    """A number of bytes in kB, MB or GB (10³, 10⁶, 10⁹)."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.3g} {unit}" if count / power < 100 else f"{count / power:.0f} {unit}"
    return f"{count:.0f} bytes"


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


def format_rough_duration(seconds: float | None) -> str:
    """A duration with one unit: 42 s, 3 min, 1.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
