"""Statistics of all rows: how many, how long, how much of them is trained on, and which are left out and why, per source."""

import statistics
from collections import Counter
from typing import Any

from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.row_counts import split_row_location
from peftrun.tasks.row_view import TRAINING, list_row_texts, names_of, split_rows
from peftrun.tasks.rows import Rows

MAX_BINS = 12  # of a histogram


def compute_statistics(rows: Rows, task: TaskSpec) -> dict[str, Any]:
    """Values for record.json and the page of `action=preview`."""
    splits = split_rows(rows, task)
    # A source's row may make several rows of tokens, so its locations are counted, not the rows.
    in_split = {
        name: Counter(split_row_location(where)[0] for where in {row.where for row in split})
        for name, split in splits.items()
    }
    cut = Counter(split_row_location(where)[0] for where in rows.tally.cut)
    left_out = Counter((split_row_location(where)[0], reason) for where, reason, _ in rows.tally.left_out)
    names = names_of(rows.tally.read)
    sources = {
        names[source]: {
            "rows": count,
            **{name: counts[source] for name, counts in in_split.items()},
            "cut": cut[source],
            "left_out": {reason: number for (name, reason), number in left_out.items() if name == source},
        }
        for source, count in rows.tally.read.items()
    }
    return {
        "splits": {name: _summarize_split(split, task) for name, split in splits.items()},
        "histogram": build_histogram([_count_tokens(row) for row in splits[TRAINING]]),
        "sources": sources,
    }


def _summarize_split(rows: list[Any], task: TaskSpec) -> dict[str, Any]:
    lengths, tokens, learned = [], 0, 0
    for row in rows:
        texts = list_row_texts(row, task.type)
        lengths.append(_count_tokens(row))
        tokens += sum(len(text.ids) for text in texts)
        learned += sum(text.learned for text in texts)
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
    """The length that `task.max_length` limits."""
    return max(len(row.ids), len(getattr(row, "target", ())))


def build_histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """(shortest, longest, rows) of each bin, empty ones between included; the bin width is 1, 2 or 5 times a power of ten."""
    low, high, step = min(lengths), max(lengths), 1
    while (high - low) // step >= MAX_BINS:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2  # 1, 2, 5, 10, 20, …
    counts = Counter(length // step for length in lengths)
    return [(bin_ * step, bin_ * step + step - 1, counts[bin_]) for bin_ in range(low // step, high // step + 1)]
