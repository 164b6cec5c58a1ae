"""Rows of several sources in one order, and rows of one group on one side of the split."""

import math
import random
from typing import Any

from peftrun import console
from peftrun.errors import DataError
from peftrun.tasks.row_counts import MIXED, Tally


def mix_sources(parts: dict[str, tuple[float, list[Any]]], seed: int, tally: Tally) -> list[Any]:
    """As many rows of each source as its weight asks for, the scarcest used up and none twice; shuffled. Said aloud.

    Args: parts: for each source its weight, and its rows in the order to be taken.
    """
    scale = min(len(rows) / weight for weight, rows in parts.values())
    taken = {name: rows[: max(1, math.floor(weight * scale + 1e-9))] for name, (weight, rows) in parts.items()}
    console.print_info(
        "data: " + ", ".join(f"{len(rows)} of {len(parts[name][1])} rows of {name}" for name, rows in taken.items())
    )
    for name, rows in taken.items():
        tally.leave_out(parts[name][1], rows, MIXED)
    together = [row for rows in taken.values() for row in rows]
    random.Random(seed).shuffle(together)
    return together


def split_by_group(rows: list[Any], groups: dict[Any, str], eval_rows: int) -> tuple[list[Any], list[Any]]:
    """Training and held-out rows that share no group: whole groups are held out, in the rows' order, until there are enough.

    Raises: DataError: there are too few groups to leave one on each side.
    """
    held: set[str] = set()
    count = 0
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[groups[row]] = sizes.get(groups[row], 0) + 1
    for name, size in sizes.items():
        if count >= eval_rows:
            break
        held.add(name)
        count += size
    train = [row for row in rows if groups[row] not in held]
    if not train:
        raise DataError(
            f"task.data.eval_rows={eval_rows}: would hold out every one of the {len(sizes)} groups; type a smaller task.data.eval_rows"
        )
    console.print_info(f"data: {len(held)} of {len(sizes)} groups are held out whole")
    return train, [row for row in rows if groups[row] in held]
