"""How many tokens the rows of a training have."""

from typing import Any

from peftrun.config.schema.run import RunSpec
from peftrun.planning.memory import Lengths
from peftrun.tasks.length_checks import IGNORE_INDEX


def list_lengths(rows: Any) -> list[int]:
    """Tokens of each training row; nothing where rows hold no tokens of their own."""
    found = rows.build_training_rows()
    return [len(row["input_ids"]) for row in found] if found and "input_ids" in found[0] else []


def find_longest(rows: Any, spec: RunSpec) -> Lengths | None:
    """Of the longest training row; None where rows hold no tokens of their own."""
    each = list_lengths(rows)
    if not each:
        return None
    longest = spec.task.max_length if spec.trainer.packing else max(each)
    return Lengths(longest, max(_count_learned(row.get("labels")) for row in rows.build_training_rows()))


def _count_learned(labels: Any) -> int:
    return sum(one != IGNORE_INDEX for one in labels) if isinstance(labels, list) else 1
