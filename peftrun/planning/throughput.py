"""Estimates of training time and row lengths, from earlier runs on the same base model on this disk; None without one. Light."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftrun.artifacts import base_files, records
from peftrun.artifacts.run_layout import CONFIG, RECORD
from peftrun.config import values as config
from peftrun.config.schema.run import ModelSpec, RunSpec, TrainerSpec
from peftrun.errors import ArtifactError
from peftrun.planning.memory import Lengths

OUTPUTS = Path("outputs")
NEWEST = 200  # records that are read
MOST = 20  # runs on the same base model whose configs are read


@dataclass(frozen=True)
class PastRun:
    """Measurements of one completed training run.

    Attributes:
        data: the settings that its rows depend on.
        row_tokens: mean tokens per row.
        lengths: of the longest row; None: not in its record.
        tokens_per_second: None: it was trained together with others, or resumed, so its seconds are not comparable.
    """

    run: Path
    data: Any
    row_tokens: float
    lengths: Lengths | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Throughput:
    """Earlier runs on one base model, newest first."""

    name: str
    runs: list[PastRun]

    def seconds(self, spec: RunSpec) -> float | None:
        """Estimated seconds of training alone. Rows that no run has had count as task.max_length. None: speed or number of rows unknown."""
        trainer, run = spec.trainer, self.find_timed_run(spec)
        if trainer.max_steps >= 0:
            rows: float | None = trainer.max_steps * count_step_rows(trainer)
        else:
            rows = trainer.num_train_epochs * spec.task.data.num_train_rows if spec.task.data.num_train_rows else None
        if rows is None or run is None or run.tokens_per_second is None:
            return None
        same_rows = self.find_run_on_same_rows(spec)
        return rows * (same_rows.row_tokens if same_rows else spec.task.max_length) / run.tokens_per_second

    def find_timed_run(self, spec: RunSpec) -> PastRun | None:
        """The newest run with a speed, preferably on the same rows."""
        timed = [run for run in self.runs if run.tokens_per_second]
        return next((run for run in timed if run.data == _get_row_settings(vars(spec.task))), next(iter(timed), None))

    def find_run_on_same_rows(self, spec: RunSpec) -> PastRun | None:
        """The newest run on the same rows."""
        return next((run for run in self.runs if run.data == _get_row_settings(vars(spec.task))), None)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """Row lengths from the newest run on the same rows that has recorded them; None: there is none."""
        same_rows = (run for run in self.runs if run.data == _get_row_settings(vars(spec.task)))
        return next((run.lengths for run in same_rows if run.lengths), None)


@dataclass(frozen=True)
class Throughputs:
    """`by_base`: name of a base model → earlier runs on it."""

    by_base: dict[str, Throughput]

    def seconds(self, spec: RunSpec) -> float | None:
        """See `Throughput.seconds`."""
        return self.by_base[base_files.format_base_name(spec.model)].seconds(spec)

    def lengths(self, spec: RunSpec) -> Lengths | None:
        """See `Throughput.lengths`."""
        return self.by_base[base_files.format_base_name(spec.model)].lengths(spec)

    def notes(self, specs: Sequence[RunSpec]) -> list[str]:
        """A line for each base model: the run on which estimates of time are based."""
        first = {base_files.format_base_name(spec.model): spec for spec in reversed(specs)}
        lines = []
        for name, spec in reversed(first.items()):
            run = self.by_base[name].find_timed_run(spec)
            if run is None or run.tokens_per_second is None:
                lines.append(f"time: unknown: no run of {name} below outputs/ yet")
                continue
            line = (
                f"time: estimated from {run.run} ({run.tokens_per_second:.0f} tokens/s on {name}), one run at a time "
                "and without evaluation; cells trained together are faster"
            )
            if not self.by_base[name].find_run_on_same_rows(spec):
                line += f"; its rows are others, so each row counts as task.max_length={spec.task.max_length} tokens"
            lines.append(line)
        return lines


def read_throughput(model: ModelSpec, outputs: Path = OUTPUTS) -> Throughput:
    """The newest completed training runs on this base model below `outputs`."""
    name = base_files.format_base_name(model)
    paths = sorted(outputs.glob(f"**/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = (run for path in paths[:NEWEST] if (run := _read_past_run(path, name)) is not None)
    return Throughput(name, list(itertools.islice(runs, MOST)))


def read_throughputs(specs: Sequence[RunSpec], outputs: Path = OUTPUTS) -> "Throughputs":
    """Earlier runs on the base models of these runs."""
    models = {base_files.format_base_name(spec.model): spec.model for spec in specs}
    return Throughputs({name: read_throughput(model, outputs) for name, model in models.items()})


def _read_past_run(path: Path, name: str) -> PastRun | None:
    """The measurements in a record; None if it is no completed training on the base model `name`."""
    try:
        record = records.read_record(path.parent)
    except ArtifactError:
        return None
    training, base = record.get("training") or {}, record.get("base") or {}
    if record.get("status") != "completed" or base.get("name") != name:
        return None
    if not (training.get("tokens") and training.get("seconds")):
        return None
    values = config.read_run(path.parent / CONFIG, report_changes=False)
    trainer, recorded = values["trainer"], record.get("lengths")
    rows = training["steps"] * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    is_timed_alone = not (record.get("joint_training") or record.get("resumed_from"))
    return PastRun(
        path.parent,
        data=_get_row_settings(values["task"]),
        row_tokens=training["tokens"] / rows,
        lengths=Lengths(recorded["longest"], recorded["learned"]) if recorded else None,
        tokens_per_second=training["tokens"] / training["seconds"] if is_timed_alone else None,
    )


def _get_row_settings(task: dict[str, Any]) -> Any:
    """The task settings that row lengths depend on. `task`: fields of a TaskSpec, or the same as plain values."""
    data = task["data"]
    path = data["path"] if isinstance(data, dict) else data.path
    return [path, task["prompt_template"], task["completion_template"], task["messages_column"], task["max_length"]]


def count_step_rows(trainer: TrainerSpec, processes: int = 1) -> int:
    """Rows of one optimizer step, over all processes."""
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * processes


def format_rows_seen(steps: int, size: int, rows: int | None) -> str:
    """Text such as `60 steps × 4 rows = 240 rows (0.26 epochs of 918)`. `size`: rows per step. `rows`: of the dataset; None: unknown."""
    epochs = f" ({steps * size / rows:.2f} epochs of {rows:,})" if rows else ""
    return f"{steps:,} steps × {size} rows = {steps * size:,} rows{epochs}"


def count_optimizer_steps(trainer: TrainerSpec, rows: int | None, processes: int = 1) -> int | None:
    """Optimizer steps of a run over `rows` rows; None: unknown."""
    if trainer.max_steps >= 0:
        return trainer.max_steps
    if rows is None:
        return None
    batches = rows / (trainer.per_device_train_batch_size * processes)
    drops_last = (trainer.arguments or {}).get("dataloader_drop_last", False)
    batches = max(1, math.floor(batches)) if drops_last else math.ceil(batches)
    return math.ceil(math.ceil(batches / trainer.gradient_accumulation_steps) * trainer.num_train_epochs)
