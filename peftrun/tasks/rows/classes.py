"""Shared by rows of both types of classifiers: token ids with labels, truncated to what the model reads."""

from dataclasses import dataclass, field
from typing import Any

from peftrun import console
from peftrun.config import override_syntax
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.messages import ROW_ADVICE
from peftrun.tasks.rows import Rows


@dataclass(frozen=True)
class Row:
    """One example: token ids, and the label id of the text, or one per token."""

    ids: list[int]
    labels: int | list[int]
    where: str = field(default="", compare=False)

    @property
    def as_trained(self) -> dict[str, Any]:
        """In the trainer's form."""
        return {"input_ids": self.ids, "labels": self.labels}


def not_among(names: list[str], name: str) -> str:
    """End of the message about a label or tag that is not in `task.label_names`."""
    override = override_syntax.join_overrides([override_syntax.quote_override("task.label_names", [*names, name])])
    return f"is not among task.label_names ({', '.join(names)}); type {override}, or {ROW_ADVICE}"


def resolve_max_length(task: TaskSpec, tokenizer: Any) -> int:
    """Maximum number of tokens of a row: the task's or the model's limit."""
    return min(task.max_length, int(tokenizer.model_max_length))


def warn_truncated(rows: Rows, limit: int) -> Rows:
    """Logs and counts the rows that reach the limit; returns the rows."""
    for which, split in (("training", rows.train), ("evaluation", rows.held_out)):
        # A row of exactly `limit` tokens may or may not have been longer: the tokenizer has truncated it already.
        cut = [row.where for row in split if len(row.ids) >= limit]
        rows.tally.cut.extend(cut)
        if cut:
            console.print_info(
                f"data: {len(cut)} of {len(split)} {which} rows reach {limit} tokens; the rest is cut off"
            )
    return rows
