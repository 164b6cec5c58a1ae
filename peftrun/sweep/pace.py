"""How long training may take: from the newest run on the same base that is on this disk. What was never measured is not guessed. Light."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun import artifacts, config
from peftrun.errors import ArtifactError
from peftrun.schema import ModelSpec, RunSpec, TrainerSpec
from peftrun.sweep import bases

OUTPUTS = Path("outputs")
NEWEST = 200  # records that are looked at


@dataclass(frozen=True)
class Pace:
    """What one run did. `data`: what its rows were made of; `row_tokens`: tokens a row of them had on average."""

    run: Path
    tokens_per_second: float
    row_tokens: float
    data: Any

    def seconds(self, spec: RunSpec) -> float | None:
        """Training alone, after the pace of this run; rows of other data count as long as they may be. None: steps not known."""
        rows = _rows(spec)
        if rows is None:
            return None
        row = self.row_tokens if self.data == _data(vars(spec.task)) else spec.task.max_length
        return rows * row / self.tokens_per_second


def of(model: ModelSpec, outputs: Path = OUTPUTS) -> Pace | None:
    """The pace of the newest completed training on this base below `outputs`; None if there is none."""
    name = bases.name_of(model)
    records = sorted(outputs.glob(f"**/{artifacts.RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((pace for path in records[:NEWEST] if (pace := _read(path, name)) is not None), None)


def _read(path: Path, name: str) -> Pace | None:
    try:
        record = artifacts.read_json(path)
    except ArtifactError:
        return None
    training, base = record.get("training") or {}, record.get("base") or {}
    alone = record.get("status") == "completed" and not record.get("together") and not record.get("resumed_from")
    if not alone or base.get("name") != name or not (training.get("tokens") and training.get("seconds")):
        return None
    asked = config.read_run(path.parent / artifacts.CONFIG, aloud=False)
    trainer = asked["trainer"]
    rows = training["steps"] * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    rate = training["tokens"] / training["seconds"]
    return Pace(path.parent, rate, training["tokens"] / rows, _data(asked["task"]))


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


def estimates(specs: Sequence[RunSpec], outputs: Path = OUTPUTS) -> tuple[list[float | None], list[str]]:
    """Seconds of training of each run by itself, None where not known; and what that rests on, a line for each base."""
    known: dict[str, Pace | None] = {}
    for spec in specs:
        name = bases.name_of(spec.model)
        if name not in known:
            known[name] = of(spec.model, outputs)
    found = [known[bases.name_of(spec.model)] for spec in specs]
    notes = [_note(name, pace) for name, pace in known.items()]
    return [pace.seconds(spec) if pace else None for pace, spec in zip(found, specs, strict=True)], notes


def _note(name: str, pace: Pace | None) -> str:
    if pace is None:
        return f"time: unknown: no run of {name} below outputs/ yet"
    return (
        f"time: cells one after another at {pace.tokens_per_second:.0f} tokens/s, as {pace.run} trained {name}; "
        "evaluation comes on top, and cells trained together take less"
    )
