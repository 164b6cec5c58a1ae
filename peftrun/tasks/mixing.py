"""Mixing rows of several sources, and splitting rows by group."""

import math
import random
from collections import Counter
from typing import Any

from peftrun import console
from peftrun.errors import DataError
from peftrun.tasks.row_counts import MIXED, Tally


def mix_sources(parts: dict[str, tuple[float, list[Any]]], seed: int, tally: Tally) -> list[Any]:
    """Rows of all sources in proportion to their weights, shuffled; logs how many of each are used. No row is used twice.

    Args: parts: source → its weight, and its rows in the order in which they are used.
    """
    # The scarcest source is used up. 1e-9 against rounding: 0.29 * 100 is 28.999999999999996.
    scale = min(len(rows) / weight for weight, rows in parts.values())
    used = {name: rows[: max(1, math.floor(weight * scale + 1e-9))] for name, (weight, rows) in parts.items()}
    console.print_info(
        "data: " + ", ".join(f"{len(rows)} of {len(parts[name][1])} rows of {name}" for name, rows in used.items())
    )
    for name, rows in used.items():
        tally.leave_out(parts[name][1], rows, MIXED)
    mixture = [row for rows in used.values() for row in rows]
    random.Random(seed).shuffle(mixture)
    return mixture


def split_by_group(rows: list[Any], groups: dict[Any, str], eval_rows: int) -> tuple[list[Any], list[Any]]:
    """Training and evaluation rows that share no group: whole groups in the order of the rows, until there are enough rows.

    Raises: DataError: no group is left to train on.
    """
    eval_groups: set[str] = set()
    count = 0
    sizes = Counter(groups[row] for row in rows)  # in the order in which groups first occur
    for name, size in sizes.items():
        if count >= eval_rows:
            break
        eval_groups.add(name)
        count += size
    train = [row for row in rows if groups[row] not in eval_groups]
    if not train:
        raise DataError(
            f"task.data.num_test_rows={eval_rows}: would evaluate on all {len(sizes)} groups, so none is left to train on; type a smaller task.data.num_test_rows"
        )
    console.print_info(f"data: {len(eval_groups)} of {len(sizes)} groups are used for evaluation only")
    return train, [row for row in rows if groups[row] in eval_groups]
