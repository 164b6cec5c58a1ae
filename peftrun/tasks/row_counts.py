"""Counts per source of rows: how many there are, which are left out and why, which are truncated. Light."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

REPEATED = "a repeated row (task.data.deduplicate=false keeps it)"
UNBALANCED = "its label is more frequent than the rarest (task.data.balance=false keeps it)"
MIXED = "task.data.mixture asks for fewer rows of its source"
SILENT = "nothing in it is learned: its answers have weight 0 or train false"
SINGLE = "a single token, which has no token before it to predict it from"
ROW_LOCATION = re.compile(r"(.*): row (\d+)")  # a source and the row's number in it


@dataclass
class Tally:
    """Counts and locations (`SOURCE: row N`) of rows.

    Attributes:
        read: source → number of rows in it.
        left_out: location, reason, and number of tokens if that is the reason (else 0).
        cut: locations of truncated rows.
        seen: locations of evaluation rows that are among the training rows too.
    """

    read: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str, int]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def leave_out(self, rows: Iterable[Any], remaining: Iterable[Any], why: str) -> None:
        """Records the rows that are not among the remaining ones."""
        remaining_ids = set(map(id, remaining))  # by identity: repeated rows are equal
        self.left_out += [(row.where, why, 0) for row in rows if id(row) not in remaining_ids]

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tally":
        """Inverse of `as_dict`. Raises: KeyError, TypeError, ValueError: the values are something else."""
        left_out = [(where, why, tokens) for where, why, tokens in values["left_out"]]  # JSON has lists for tuples
        return cls(values["read"], left_out, values["cut"], values["seen"])


def split_row_location(where: str) -> tuple[str, int]:
    """The source of a row, and its number there (from 1)."""
    match = ROW_LOCATION.match(where)
    assert match is not None, where
    return match[1], int(match[2])
