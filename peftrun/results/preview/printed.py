"""Rows as they will be learned, on a terminal or in a log. Light."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from peftrun.results.report.learned_rows import (
    TOKENS,
    cut_text,
    describe_lengths,
    escape_control_chars,
    flag_learned_tokens,
)

Marked = tuple[str, bool]  # a text, and whether it is learned
BAR = 40  # columns of the longest bar
NAMES = {"": "", "rejected": "rejected", "target": "written"}


def format_row(row: dict[str, Any]) -> Iterator[Marked]:
    """One row of `rows.jsonl`: where it comes from, each text, what else it says."""
    yield f"{escape_control_chars(row['source'])} · {row['split']} · {describe_lengths(row)}\n", False
    name = "chosen" if "rejected" in row else "read" if "target" in row else ""
    yield from _format_text(row, name)
    for key, title in NAMES.items():
        if isinstance(row.get(key), dict):
            yield from _format_text(row[key], title)
    for key, value in row.get("facts", {}).items():
        yield f"{key}: {escape_control_chars(str(value))}\n", False
    yield "\n", False


def _format_text(part: dict[str, Any], name: str) -> Iterator[Marked]:
    if name:
        yield f"{name}:\n", False
    last = ""
    for text, learned in cut_text(part["text"], part["spans"]):
        last = escape_control_chars(text)
        yield last, bool(learned)
    yield "" if last.endswith("\n") else "\n", False
    if "tokens" in part:
        yield from _format_tokens(part)


def _format_tokens(part: dict[str, Any]) -> Iterator[Marked]:
    told = [
        (f"{escape_control_chars(text).rstrip(chr(10)).replace(' ', '␣')}({number})", learned)
        for text, number, learned in zip(part["tokens"], part["input_ids"], flag_learned_tokens(part), strict=True)
    ]
    for learned, run in groupby(told[:TOKENS], key=lambda one: one[1]):
        yield " ".join(text for text, _ in run), learned
        yield " ", False
    yield f"… {len(told) - TOKENS:,} more\n" if told[TOKENS:] else "\n", False


def format_histogram(bins: list[Any]) -> Iterator[str]:
    """A histogram, a line a bin."""
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high, _ in bins]
    most, wide = max(count for *_, count in bins), max(map(len, names))
    for name, (*_, count) in zip(names, bins, strict=True):
        yield f"  {name:>{wide}}  {'█' * round(BAR * count / most) or ('▏' if count else '')} {count:,}"
