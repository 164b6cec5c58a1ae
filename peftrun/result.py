"""What every action returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunResult:
    """What one run found and made.

    Attributes:
        out_dir: the run folder.
        facts: goes into the record as it is: base, device, proofs, timings.
        metrics: what the task measured, in the order measured.
        artifacts: folders whose every file is hashed into the record.
        hashes: sha256 of those of their files that were hashed while they were made.
        summary: (label, text) rows of the closing table.
        next_commands: what a user may type next.
        objective: what a sweeper minimises, if the action has one.
        status: `completed`, or `stopped` where a sweep has ended it early.
    """

    out_dir: Path
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Path] = field(default_factory=list)
    hashes: dict[Path, str] = field(default_factory=dict)
    summary: list[tuple[str, str]] = field(default_factory=list)
    next_commands: list[str] = field(default_factory=list)
    objective: float | None = None
    status: str = "completed"


@dataclass(frozen=True)
class TrainAlone:
    """A cell that cannot be trained among others, and why; it is to be run alone."""

    reason: str
