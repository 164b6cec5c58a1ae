"""What a tracker is told: the run as it begins, rows as they come, how it ended. Light."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

from peftrun.artifacts.run_layout import ADAPTER, CONFIG, CURVES, RECORD, REPORT_PAGE

STATE = "tracker.json"  # in the run folder: which run of the tracker it is
LOGGED_FILES = (RECORD, CONFIG, REPORT_PAGE, CURVES)  # of the run folder, where they are there
SENTENCE_END = re.compile(r"(?<=\w\w)[.:;](?= [A-Z(])")  # where one ends
INVALID_NAME_CHARS = re.compile(r"[^\w\-. /]")  # letters that MLflow refuses in a name


@dataclass(frozen=True)
class Run:
    """A run that begins, or goes on.

    Attributes:
        folder: of the run; name: by which the tracker shows it; group: the sweep that it is a cell of.
        config: full key → value; differs: what was asked for beyond the default run, as it is typed.
        id: of the tracker's run that goes on; None: a new one. step: the last one that was done before.
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
        error: why it failed. figures: name → value, and the step that it belongs to.
        files: of the run folder. adapter: its folder, where one was saved.
    """

    status: str
    error: str
    figures: dict[str, tuple[float, int]]
    files: list[Path]
    adapter: Path | None
    record: dict[str, Any]

    def at(self, first: bool) -> dict[str, float]:
        """Figures measured before the first step, or after it."""
        return {name: value for name, (value, step) in self.figures.items() if (step == 0) == first}

    @property
    def last_step(self) -> int:
        """The step of the figures measured last."""
        return max((step for _, step in self.figures.values()), default=0)


class Session(Protocol):
    """A handle on one run of a tracker. Its methods may raise what the library raises."""

    id: str

    def log(self, values: dict[str, float], step: int) -> None:
        """Figures of a step."""

    def pause(self) -> None:
        """Everything told so far is written; the run has not ended."""

    def end(self, outcome: Outcome) -> None:
        """The run has ended."""


def explain_error(error: BaseException) -> str:
    """Why a library has failed: what the system said where it was asked first, else the library's first sentence."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    said = [one.strerror for one in chain if isinstance(one, OSError) and one.strerror]
    text = said[-1] if said else SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)[0]
    return shorten(text, 200, placeholder=" …") or type(error).__name__


def extract_metrics(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl under the names that transformers' callbacks use: `train/loss`, `eval/loss`."""
    found = {key: float(value) for key, value in row.items() if key != "step" and _is_number(value)}
    return {_prefix_metric_name(key): value for key, value in found.items()}


def _prefix_metric_name(key: str) -> str:
    name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
    return INVALID_NAME_CHARS.sub("_", name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_value(value: Any) -> str:
    """A value of the config as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def build_outcome(folder: Path, record: dict[str, Any]) -> Outcome:
    """How a run ended, from its finished record."""
    adapter = folder / ADAPTER
    return Outcome(
        str(record.get("status")),
        str(record.get("error") or ""),
        _collect_metrics(record),
        [folder / name for name in LOGGED_FILES if (folder / name).is_file()],
        adapter if adapter.is_dir() else None,
        record,
    )


def _collect_metrics(record: dict[str, Any]) -> dict[str, tuple[float, int]]:
    last = int((record.get("training") or {}).get("steps", 0))
    return {
        INVALID_NAME_CHARS.sub("_", f"{when}/{name}"): (float(value), step)
        for when, step in (("before", 0), ("after", last))
        for name, value in ((record.get("metrics") or {}).get(when) or {}).items()
        if _is_number(value)
    }


def summarize_record(record: dict[str, Any]) -> dict[str, Any]:
    """Of a record what a person compares runs by."""
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
