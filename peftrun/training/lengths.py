"""Lengths of the training rows, in tokens."""

from typing import Any

from peftrun.config.schema.run import RunSpec
from peftrun.planning.memory import Lengths
from peftrun.tasks.length_checks import IGNORE_INDEX


def list_lengths(rows: Any) -> list[int]:
    """Tokens of each training row; empty where rows have no `input_ids`, as those of preferences."""
    training_rows = rows.build_training_rows()
    return [len(row["input_ids"]) for row in training_rows] if training_rows and "input_ids" in training_rows[0] else []


def find_longest(rows: Any, spec: RunSpec) -> Lengths | None:
    """Most tokens, and most labels, of any training row; None where rows have no `input_ids`."""
    row_lengths = list_lengths(rows)
    if not row_lengths:
        return None
    longest = spec.task.max_length if spec.trainer.packing else max(row_lengths)
    labels = [row.get("labels") for row in rows.build_training_rows()]
    learned = max(
        # A sequence classifier's row has one label, no list.
        sum(label != IGNORE_INDEX for label in row_labels) if isinstance(row_labels, list) else 1
        for row_labels in labels
    )
    return Lengths(longest, learned)
