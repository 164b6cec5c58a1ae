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
class Earlier:
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
class Pace:
    """Trainings on one base, newest first."""

    name: str
    runs: list[Earlier]

    def seconds(self, spec: RunSpec) -> float | None:
        """Training alone, at the pace of an earlier run; rows that none had count as long as they may be. None: pace or steps not known."""
        rows, run = _rows(spec), self.timed(spec)
        if rows is None or run is None or run.tokens_per_second is None:
            return None
        known = self.alike(spec)
        return rows * (known.row_tokens if known else spec.task.max_length) / run.tokens_per_second

    def timed(self, spec: RunSpec) -> Earlier | None:
        """The newest run that trained by itself, on the same rows if there is one."""
        timed = [run for run in self.runs if run.tokens_per_second]
        return next((run for run in timed if run.data == _data(vars(spec.task))), next(iter(timed), None))

    def alike(self, spec: RunSpec) -> Earlier | None:
        """The newest run on the same rows."""
        return next((run for run in self.runs if run.data == _data(vars(spec.task))), None)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """Of the run's rows, where an earlier run on them has noted it."""
        same = (run for run in self.runs if run.data == _data(vars(spec.task)))
        return next((run.lengths for run in same if run.lengths), None)


@dataclass(frozen=True)
class Paces:
    """Name of a base → what earlier trainings on it tell."""

    known: dict[str, Pace]

    def seconds(self, spec: RunSpec) -> float | None:
        """See `Pace.seconds`."""
        return self.known[base_files.name_of(spec.model)].seconds(spec)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """See `Pace.lengths`."""
        return self.known[base_files.name_of(spec.model)].lengths(spec)

    def notes(self, specs: Sequence[RunSpec]) -> list[str]:
        """What estimates of time rest on, a line for each base."""
        first = {base_files.name_of(spec.model): spec for spec in reversed(specs)}
        return [_note(self.known[name], spec) for name, spec in reversed(first.items())]


def of(model: ModelSpec, outputs: Path = OUTPUTS) -> Pace:
    """The newest completed trainings on this base below `outputs`."""
    name = base_files.name_of(model)
    records = sorted(outputs.glob(f"**/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (run for path in records[:NEWEST] if (run := _read(path, name)) is not None)
    return Pace(name, list(itertools.islice(found, MOST)))


def of_all(specs: Sequence[RunSpec], outputs: Path = OUTPUTS) -> "Paces":
    """The paces of the bases of these runs."""
    models = {base_files.name_of(spec.model): spec.model for spec in specs}
    return Paces({name: of(model, outputs) for name, model in models.items()})


def _read(path: Path, name: str) -> Earlier | None:
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
    return Earlier(path.parent, _data(asked["task"]), training["tokens"] / rows, lengths, rate)


def _data(task: dict[str, Any]) -> Any:
    """What decides how long rows are."""
    data = task["data"]
    path = data["path"] if isinstance(data, dict) else data.path
    return [path, task["prompt"], task["completion"], task["messages"], task["max_length"]]


def step_rows(trainer: TrainerSpec, processes: int = 1) -> int:
    """Rows of one optimiser step."""
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * processes


def seen(steps: int, size: int, rows: int | None) -> str:
    """How often rows are learned: `60 steps × 4 rows = 240 rows (0.26 epochs of 918)`."""
    epochs = f" ({steps * size / rows:.2f} epochs of {rows:,})" if rows else ""
    return f"{steps:,} steps × {size} rows = {steps * size:,} rows{epochs}"


def steps(trainer: TrainerSpec, rows: int | None, processes: int = 1) -> int | None:
    """Optimiser steps of a run over so many rows; None where that is not known."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    if rows is None:
        return None
    batches = math.ceil(rows / (trainer.per_device_train_batch_size * processes))
    return math.ceil(math.ceil(batches / trainer.gradient_accumulation_steps) * trainer.num_train_epochs)


def _rows(spec: RunSpec) -> float | None:
    if spec.trainer.max_steps > 0:
        return spec.trainer.max_steps * step_rows(spec.trainer)
    return spec.trainer.num_train_epochs * spec.task.data.train_rows if spec.task.data.train_rows else None


def _note(pace: Pace, spec: RunSpec) -> str:
    run = pace.timed(spec)
    if run is None or run.tokens_per_second is None:
        return f"time: unknown: no run of {pace.name} below outputs/ yet"
    said = (
        f"time: estimated from {run.run} ({run.tokens_per_second:.0f} tokens/s on {pace.name}), one run at a time and without evaluation; "
        "cells trained together are faster"
    )
    if pace.alike(spec):
        return said
    return f"{said}; its rows are others, so each row counts as task.max_length={spec.task.max_length} tokens"
