"""Rows of each kind of task as token ids, one file a kind; no torch. What is measured on them stands beside, in `tasks`."""

from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from peftrun.tasks.row_counts import Tally


@dataclass(frozen=True)
class Rows:
    """Training rows, held-out rows, a digest of both, and what became of the other rows."""

    train: list[Any]
    held_out: list[Any]
    digest: str
    tally: Tally = field(default_factory=Tally)

    def build_training_rows(self) -> list[dict[str, Any]]:
        """Each training row as the loop takes it."""
        return [row.as_trained for row in self.train]

    @property
    def learned_too(self) -> int:
        """How many of the held-out rows are training rows as well."""
        seen = {*self.tally.seen}
        return sum(row.where in seen for row in self.held_out)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        too = {"held_out_rows_learned": self.learned_too} if self.learned_too else {}
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out), **too, "digest": self.digest}


def import_rows_module(kind: str) -> ModuleType:
    """The module of a kind's rows: `Row`, and `load_rows(task, tokenizer)`."""
    return import_module(f"peftrun.tasks.rows.{kind}")
