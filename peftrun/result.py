"""The result of an action."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunResult:
    """The outcome of one run.

    Attributes:
        out_dir: the run folder.
        facts: stored in record.json as they are: base model, device, proofs, timings.
        metrics: the task's metrics, in the order of evaluation.
        artifacts: folders of which every file is hashed into the record.
        hashes: sha256 of the files in them that were hashed while being written.
        summary: (label, text) rows of the summary table.
        next_commands: commands to suggest to the user.
        objective: the value that a sweeper minimizes, if the action has one.
        status: `completed`, or `stopped` if a sweep ended the run early.
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
    """A cell of a sweep that cannot be trained jointly with others, and why; it is run alone."""

    reason: str
