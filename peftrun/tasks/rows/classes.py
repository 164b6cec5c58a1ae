"""What rows of both kinds of classifiers share: token ids with labels, cut where the model ends."""

from dataclasses import dataclass, field
from typing import Any

from peftrun import console
from peftrun.config import override_syntax
from peftrun.config.schema.run import TaskSpec
from peftrun.tasks.messages import ROW_ADVICE
from peftrun.tasks.rows import Rows


@dataclass(frozen=True)
class Row:
    """One example: token ids, and the label's number (of a text) or each token's (of words)."""

    ids: list[int]
    labels: int | list[int]
    where: str = field(default="", compare=False)

    @property
    def as_trained(self) -> dict[str, Any]:
        """As the loop takes it."""
        return {"input_ids": self.ids, "labels": self.labels}


def not_among(names: list[str], name: str) -> str:
    """What is said of a label or tag that is none of `task.label_names`."""
    more = override_syntax.join_overrides([override_syntax.quote_override("task.label_names", [*names, name])])
    return f"is not among task.label_names ({', '.join(names)}); type {more}, or {ROW_ADVICE}"


def resolve_max_length(task: TaskSpec, tokenizer: Any) -> int:
    """Tokens of a row that are read: as many as the task says, or as the model can."""
    return min(task.max_length, int(tokenizer.model_max_length))


def warn_truncated(rows: Rows, most: int) -> Rows:
    """The same rows; how many of them reach the limit is said aloud."""
    for which, some in (("training", rows.train), ("held-out", rows.held_out)):
        cut = [row.where for row in some if len(row.ids) >= most]
        rows.tally.cut.extend(cut)
        if cut:
            console.print_info(
                f"data: {len(cut)} of {len(some)} {which} rows reach {most} tokens; what lies beyond is not read"
            )
    return rows
