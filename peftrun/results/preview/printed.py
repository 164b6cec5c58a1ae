"""Training rows as they will be learned, as text for a terminal or a log. Light."""

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

Marked = tuple[str, bool]  # (text, whether it is learned)
BAR = 40  # characters of the longest bar
NAMES = {"": "", "rejected": "rejected", "target": "written"}


def format_row(row: dict[str, Any]) -> Iterator[Marked]:
    """One row of `rows.jsonl`: source and split, each text, further fields."""
    yield f"{escape_control_chars(row['source'])} · {row['split']} · {describe_lengths(row)}\n", False
    name = "chosen" if "rejected" in row else "read" if "target" in row else ""
    yield from _format_text(row, name)
    for key, title in NAMES.items():
        if isinstance(row.get(key), dict):
            yield from _format_text(row[key], title)
    for key, value in row.get("facts", {}).items():
        yield f"{key}: {escape_control_chars(str(value))}\n", False
    yield "\n", False


def _format_text(row_text: dict[str, Any], name: str) -> Iterator[Marked]:
    if name:
        yield f"{name}:\n", False
    piece = ""
    for text, is_learned in cut_text(row_text["text"], row_text["spans"]):
        piece = escape_control_chars(text)
        yield piece, bool(is_learned)
    yield "" if piece.endswith("\n") else "\n", False
    if "tokens" not in row_text:
        return
    tokens = [
        (f"{escape_control_chars(text).rstrip(chr(10)).replace(' ', '␣')}({number})", learned)
        for text, number, learned in zip(
            row_text["tokens"], row_text["input_ids"], flag_learned_tokens(row_text), strict=True
        )
    ]
    # Joined by runs, so that a terminal marks the blanks between learned tokens too.
    for learned, run in groupby(tokens[:TOKENS], key=lambda token: token[1]):
        yield " ".join(text for text, _ in run), learned
        yield " ", False
    yield f"… {len(tokens) - TOKENS:,} more\n" if tokens[TOKENS:] else "\n", False


def format_histogram(bins: list[Any]) -> Iterator[str]:
    """A histogram, one line per bin."""
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high, _ in bins]
    highest, name_width = max(count for *_, count in bins), max(map(len, names))
    for name, (*_, count) in zip(names, bins, strict=True):
        yield f"  {name:>{name_width}}  {'█' * round(BAR * count / highest) or ('▏' if count else '')} {count:,}"
