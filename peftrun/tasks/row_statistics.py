"""What all rows together are: how many, how long, how much of them is learned, and which are left out and why, for each source."""

import statistics
from collections import Counter
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.row_counts import split_row_location
from peftrun.tasks.row_view import TRAINING, list_row_texts, names_of, split_rows
from peftrun.tasks.rows import Rows

MAX_BINS = 12  # of a histogram, at most


def compute_statistics(rows: Rows, task: TaskSpec) -> dict[str, Any]:
    """For the record and the page."""
    splits = split_rows(rows, task)
    return {
        "splits": {name: _summarize_split(some, task) for name, some in splits.items()},
        "histogram": build_histogram([_count_tokens(row) for row in splits[TRAINING]]),
        "sources": _summarize_sources(rows, splits),
    }


def _summarize_split(rows: list[Any], task: TaskSpec) -> dict[str, Any]:
    lengths, tokens, learned = [], 0, 0
    for row in rows:
        parts = list_row_texts(row, task.kind)
        lengths.append(_count_tokens(row))
        tokens += sum(len(part.ids) for part in parts)
        learned += sum(part.learned for part in parts)
    return {
        "rows": len(rows),
        "tokens": tokens,
        "learned_tokens": learned,
        "share_learned": round(learned / tokens, 4) if tokens else 0.0,
        "shortest": min(lengths),
        "median": statistics.median_low(lengths),
        "longest": max(lengths),
    }


def _count_tokens(row: Any) -> int:
    """What is held against `task.max_length`."""
    return max(len(row.ids), len(getattr(row, "target", ())))


def build_histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """(shortest, longest, rows) of lengths in steps of 1, 2 or 5 times a power of ten; those between that have no rows too."""
    low, high, step = min(lengths), max(lengths), 1
    while (high - low) // step >= MAX_BINS:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    counts = Counter(length // step for length in lengths)
    return [(one * step, one * step + step - 1, counts[one]) for one in range(low // step, high // step + 1)]


def _summarize_sources(rows: Rows, splits: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Source → its rows, how many of them are in each split, how many are cut, and how many are left out for each reason."""
    held = {
        name: Counter(split_row_location(where)[0] for where in {row.where for row in some})
        for name, some in splits.items()
    }
    cut = Counter(split_row_location(where)[0] for where in rows.tally.cut)
    why = Counter((split_row_location(where)[0], reason) for where, reason, _ in rows.tally.left_out)
    names = names_of(rows.tally.read)
    return {
        names[source]: {
            "rows": count,
            **{name: some[source] for name, some in held.items()},
            "cut": cut[source],
            "left_out": {reason: number for (one, reason), number in why.items() if one == source},
        }
        for source, count in rows.tally.read.items()
    }
