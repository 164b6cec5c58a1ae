"""What became of the rows of each source: how many there are, which are left out and why, which are cut. Light."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

REPEATED = "a repeated row (task.data.deduplicate=false keeps it)"
UNBALANCED = "its label is more frequent than the rarest (task.data.balance=false keeps it)"
MIXED = "task.data.mix asks for fewer rows of its source"
SILENT = "nothing in it is learned: its answers have weight 0 or train false"
SINGLE = "a single token, before which nothing stands"
ROW_LOCATION = re.compile(r"(.*): row (\d+)")  # a source and the row's number in it


@dataclass
class Tally:
    """Rows by where they come from.

    Attributes:
        read: source → how many rows it holds.
        left_out: where, why, and how many tokens it has where that is why (else 0).
        cut: where a row comes from whose end is not read.
        seen: where a held-out row comes from that is among the training rows too.
    """

    read: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str, int]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def leave_out(self, rows: Iterable[Any], kept: Iterable[Any], why: str) -> None:
        """Notes those of the rows that are not among the kept ones."""
        still_there = set(map(id, kept))
        self.left_out += [(row.where, why, 0) for row in rows if id(row) not in still_there]

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Tally":
        """The same again. Raises: KeyError, TypeError, ValueError: it is something else."""
        return cls(
            found["read"],
            [(where, why, tokens) for where, why, tokens in found["left_out"]],
            found["cut"],
            found["seen"],
        )


def split_row_location(where: str) -> tuple[str, int]:
    """The source that a row comes from, and its number there."""
    found = ROW_LOCATION.match(where)
    assert found is not None, where
    return found[1], int(found[2])
