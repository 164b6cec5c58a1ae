"""What is logged to a tracker: the run at its start, metrics, and the outcome. Light."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

from peftrun.artifacts.run_layout import ADAPTER, CONFIG, CURVES, RECORD, REPORT_PAGE
from peftrun.formatting import is_number

STATE = "tracker.json"  # in the run folder: id of the run in the tracker
LOGGED_FILES = (RECORD, CONFIG, REPORT_PAGE, CURVES)  # of the run folder, if they exist
SENTENCE_END = re.compile(r"(?<=\w\w)[.:;](?= [A-Z(])")
INVALID_NAME_CHARS = re.compile(r"[^\w\-. /]")  # that MLflow refuses in a metric's name


@dataclass(frozen=True)
class Run:
    """A run that starts or continues.

    Attributes:
        folder: the run folder. name: in the tracker. group: the sweep of a cell.
        config: full key → value. differs: overrides of the default run.
        id: of the tracker's run to continue; None: a new one. step: the last one before this attempt.
    """

    folder: Path
    name: str
    group: str | None
    config: dict[str, Any]
    differs: list[str]
    id: str | None = None
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        status: completed, stopped (by a sweep), failed or interrupted.
        error: why it failed. figures: metric → value and its step.
        files: of the run folder. adapter: its folder, if one was saved.
    """

    status: str
    error: str
    figures: dict[str, tuple[float, int]]
    files: list[Path]
    adapter: Path | None
    record: dict[str, Any]

    def at(self, first: bool) -> dict[str, float]:
        """Metrics measured before the first step, or after it."""
        return {name: value for name, (value, step) in self.figures.items() if (step == 0) == first}

    @property
    def last_step(self) -> int:
        """The last step with metrics."""
        return max((step for _, step in self.figures.values()), default=0)


class Session(Protocol):
    """A handle on one run of a tracker. Its methods may raise what the library raises."""

    id: str

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs metrics of a step."""

    def pause(self) -> None:
        """Flushes and closes without ending the run."""

    def end(self, outcome: Outcome) -> None:
        """Logs the outcome and ends the run."""


def explain_error(error: BaseException) -> str:
    """Reason of a library's error in one sentence: the operating system's if one is in the chain, else the library's own."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    # The innermost one: HTTP libraries wrap "Connection refused" several times.
    reasons = [link.strerror for link in chain if isinstance(link, OSError) and link.strerror]
    text = reasons[-1] if reasons else SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)[0]
    return shorten(text, 200, placeholder=" …") or type(error).__name__


def extract_metrics(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl under the names that transformers' callbacks use: `train/loss`, `eval/loss`."""
    metrics = {}
    for key, value in row.items():
        if key != "step" and is_number(value):
            name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
            metrics[INVALID_NAME_CHARS.sub("_", name)] = float(value)
    return metrics


def build_outcome(folder: Path, record: dict[str, Any]) -> Outcome:
    """The outcome of a run from its finished record."""
    adapter = folder / ADAPTER
    last_step = int((record.get("training") or {}).get("steps", 0))
    metrics = record.get("metrics") or {}
    return Outcome(
        str(record.get("status")),
        str(record.get("error") or ""),
        {
            INVALID_NAME_CHARS.sub("_", f"{when}/{name}"): (float(value), step)
            for when, step in (("before", 0), ("after", last_step))
            for name, value in (metrics.get(when) or {}).items()
            if is_number(value)
        },
        [folder / name for name in LOGGED_FILES if (folder / name).is_file()],
        adapter if adapter.is_dir() else None,
        record,
    )


def summarize_record(record: dict[str, Any]) -> dict[str, Any]:
    """The entries of a record by which one compares runs."""
    names = (
        "status",
        "error",
        "seconds",
        "objective",
        "parameters",
        "trainable_parameters",
        "git_commit",
        "resumed_from",
    )
    return {name: record[name] for name in names if record.get(name) is not None}
