"""Rows of each task type as token ids, one module per type; needs no torch. Their metrics are in `tasks`."""

from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from peftrun.tasks.row_counts import Tally


@dataclass(frozen=True)
class Rows:
    """Training rows, evaluation rows, a digest of both, and counts of the rows that are left out."""

    train: list[Any]
    held_out: list[Any]
    digest: str
    tally: Tally = field(default_factory=Tally)

    def build_training_rows(self) -> list[dict[str, Any]]:
        """Each training row in the trainer's form."""
        return [row.as_trained for row in self.train]

    @property
    def learned_too(self) -> int:
        """Number of evaluation rows that are training rows too."""
        seen = {*self.tally.seen}
        return sum(row.where in seen for row in self.held_out)

    def describe(self) -> dict[str, Any]:
        """Values for record.json."""
        overlap = {"held_out_rows_learned": self.learned_too} if self.learned_too else {}
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), **overlap, "digest": self.digest}


def import_rows_module(kind: str) -> ModuleType:
    """The rows module of a task type: `Row`, and `load_rows(task, tokenizer)`."""
    return import_module(f"peftrun.tasks.rows.{kind}")
