"""How long training may take, and how long its rows are: from runs on the same base that are on this disk. What was never measured is not guessed. Light."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_files
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.config import values as config
from peftrun.config.schema.run import ModelSpec, RunSpec, TrainerSpec
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files
from peftrun.planning.memory import Lengths

OUTPUTS = Path("outputs")
NEWEST = 200  # records that are looked at
MOST = 20  # of which so many on the same base are read with their configs


@dataclass(frozen=True)
class PastRun:
    """What one completed training tells of others on its base.

    Attributes:
        data: what its rows were made of.
        row_tokens: tokens of a row, on average.
        lengths: of the longest row; None: its record does not tell.
        tokens_per_second: None: its time was not its own, since it was trained together with others or continued.
    """

    run: Path
    data: Any
    row_tokens: float
    lengths: Lengths | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Throughput:
    """Trainings on one base, newest first."""

    name: str
    runs: list[PastRun]

    def seconds(self, spec: RunSpec) -> float | None:
        """Training alone, at the pace of an earlier run; rows that none had count as long as they may be. None: pace or steps not known."""
        rows, run = _count_rows(spec), self.find_timed_run(spec)
        if rows is None or run is None or run.tokens_per_second is None:
            return None
        known = self.find_run_on_same_rows(spec)
        return rows * (known.row_tokens if known else spec.task.max_length) / run.tokens_per_second

    def find_timed_run(self, spec: RunSpec) -> PastRun | None:
        """The newest run that trained by itself, on the same rows if there is one."""
        timed = [run for run in self.runs if run.tokens_per_second]
        return next((run for run in timed if run.data == _get_row_settings(vars(spec.task))), next(iter(timed), None))

    def find_run_on_same_rows(self, spec: RunSpec) -> PastRun | None:
        """The newest run on the same rows."""
        return next((run for run in self.runs if run.data == _get_row_settings(vars(spec.task))), None)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """Of the run's rows, where an earlier run on them has noted it."""
        same = (run for run in self.runs if run.data == _get_row_settings(vars(spec.task)))
        return next((run.lengths for run in same if run.lengths), None)


@dataclass(frozen=True)
class Throughputs:
    """Name of a base → what earlier trainings on it tell."""

    known: dict[str, Throughput]

    def seconds(self, spec: RunSpec) -> float | None:
        """See `Pace.seconds`."""
        return self.known[base_files.format_base_name(spec.model)].seconds(spec)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """See `Pace.lengths`."""
        return self.known[base_files.format_base_name(spec.model)].lengths(spec)

    def notes(self, specs: Sequence[RunSpec]) -> list[str]:
        """What estimates of time rest on, a line for each base."""
        first = {base_files.format_base_name(spec.model): spec for spec in reversed(specs)}
        return [_format_note(self.known[name], spec) for name, spec in reversed(first.items())]


def read_throughput(model: ModelSpec, outputs: Path = OUTPUTS) -> Throughput:
    """The newest completed trainings on this base below `outputs`."""
    name = base_files.format_base_name(model)
    records = sorted(outputs.glob(f"**/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (run for path in records[:NEWEST] if (run := _read_past_run(path, name)) is not None)
    return Throughput(name, list(itertools.islice(found, MOST)))


def read_throughputs(specs: Sequence[RunSpec], outputs: Path = OUTPUTS) -> "Throughputs":
    """The paces of the bases of these runs."""
    models = {base_files.format_base_name(spec.model): spec.model for spec in specs}
    return Throughputs({name: read_throughput(model, outputs) for name, model in models.items()})


def _read_past_run(path: Path, name: str) -> PastRun | None:
    try:
        record = atomic_files.read_json(path)
    except ArtifactError:
        return None
    training, base = record.get("training") or {}, record.get("base") or {}
    if record.get("status") != "completed" or base.get("name") != name:
        return None
    if not (training.get("tokens") and training.get("seconds")):
        return None
    asked = config.read_run(path.parent / CONFIG, aloud=False)
    trainer, noted = asked["trainer"], record.get("lengths")
    rows = training["steps"] * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    shared = record.get("together") or record.get("resumed_from")
    rate = None if shared else training["tokens"] / training["seconds"]
    lengths = Lengths(noted["longest"], noted["learned"]) if noted else None
    return PastRun(path.parent, _get_row_settings(asked["task"]), training["tokens"] / rows, lengths, rate)


def _get_row_settings(task: dict[str, Any]) -> Any:
    """What decides how long rows are."""
    data = task["data"]
    path = data["path"] if isinstance(data, dict) else data.path
    return [path, task["prompt"], task["completion"], task["messages"], task["max_length"]]


def count_step_rows(trainer: TrainerSpec, processes: int = 1) -> int:
    """Rows of one optimiser step."""
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * processes


def format_rows_seen(steps: int, size: int, rows: int | None) -> str:
    """How often rows are learned: `60 steps × 4 rows = 240 rows (0.26 epochs of 918)`."""
    epochs = f" ({steps * size / rows:.2f} epochs of {rows:,})" if rows else ""
    return f"{steps:,} steps × {size} rows = {steps * size:,} rows{epochs}"


def count_optimizer_steps(trainer: TrainerSpec, rows: int | None, processes: int = 1) -> int | None:
    """Optimiser steps of a run over so many rows; None where that is not known."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    if rows is None:
        return None
    batches = math.ceil(rows / (trainer.per_device_train_batch_size * processes))
    return math.ceil(math.ceil(batches / trainer.gradient_accumulation_steps) * trainer.num_train_epochs)


def _count_rows(spec: RunSpec) -> float | None:
    if spec.trainer.max_steps > 0:
        return spec.trainer.max_steps * count_step_rows(spec.trainer)
    return spec.trainer.num_train_epochs * spec.task.data.train_rows if spec.task.data.train_rows else None


def _format_note(pace: Throughput, spec: RunSpec) -> str:
    run = pace.find_timed_run(spec)
    if run is None or run.tokens_per_second is None:
        return f"time: unknown: no run of {pace.name} below outputs/ yet"
    said = (
        f"time: estimated from {run.run} ({run.tokens_per_second:.0f} tokens/s on {pace.name}), one run at a time and without evaluation; "
        "cells trained together are faster"
    )
    if pace.find_run_on_same_rows(spec):
        return said
    return f"{said}; its rows are others, so each row counts as task.max_length={spec.task.max_length} tokens"
