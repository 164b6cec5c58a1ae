"""How many tokens the rows of a training have."""

from typing import Any

from peftrun.config.schema.run import RunSpec
from peftrun.planning.memory import Lengths
from peftrun.tasks.length_checks import IGNORED


def of_each(rows: Any) -> list[int]:
    """Tokens of each training row; nothing where rows hold no tokens of their own."""
    found = rows.for_training()
    return [len(row["input_ids"]) for row in found] if found and "input_ids" in found[0] else []


def of_longest(rows: Any, spec: RunSpec) -> Lengths | None:
    """Of the longest training row; None where rows hold no tokens of their own."""
    each = of_each(rows)
    if not each:
        return None
    longest = spec.task.max_length if spec.trainer.packing else max(each)
    return Lengths(longest, max(_learned(row.get("labels")) for row in rows.for_training()))


def _learned(labels: Any) -> int:
    return sum(one != IGNORED for one in labels) if isinstance(labels, list) else 1
