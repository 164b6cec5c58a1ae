"""Numbers, times and sizes as people read them."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeGuard

COLUMN_GAP = "  "


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that has a place on a page."""
    return is_number(value) and math.isfinite(value)


def format_figure(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"


def format_number(value: Any) -> str:
    """A number with four significant digits, thousands parted; a dash for what is none."""
    if not is_number(value):
        return "–"
    if not math.isfinite(value):
        return "no finite number"
    whole = isinstance(value, int) or abs(value) >= 10_000
    return f"{value:,.0f}" if whole else f"{value:.4g}".replace("e-0", "e-")


def format_signed(value: float) -> str:
    """A difference, its sign before it."""
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{format_figure(abs(value))}"


def format_duration(seconds: float) -> str:
    """A time as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(count: float) -> str:
    """Bytes with the unit that suits them (10³, 10⁶, 10⁹)."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.3g} {unit}" if count / power < 100 else f"{count / power:.0f} {unit}"
    return f"{count:.0f} bytes"


def shorten_keys(keys: Sequence[str]) -> list[str]:
    """The last part of each key; whole where that is not enough to tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def select_finite(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, figure) of the rows that have the figure as a finite number; of several at one step the last."""
    known = [(float(row["step"]), float(row[key])) for row in rows if is_finite(row.get(key)) and is_finite(row.get("step"))]  # fmt: skip
    return [[*group][-1] for _, group in groupby(sorted(known), key=lambda point: point[0])]


def format_count(count: Any, what: str) -> str:
    """A count of things, in words that fit it."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def align_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns stand below each other; the last column is not filled up."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        COLUMN_GAP.join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
        for row in rows
    ]


def format_rough_duration(seconds: float | None) -> str:
    """A time for people: 42 s, 3 min, 1.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
