"""Results of a sweep by cell: sweep.json for programs, sweep.csv for spreadsheets. Read from the cells' records each time."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftrun.artifacts import records
from peftrun.artifacts.run_layout import RECORD
from peftrun.artifacts.sweep_folder import SUMMARY_FILE
from peftrun.config import values as config
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

TABLE, ATTEMPTS = "sweep.csv", "attempts"
SEED = "seed"


@dataclass(frozen=True)
class PlannedCell:
    """One cell as it was planned; its results are in its record.

    Attributes:
        numbers: job numbers in the sweep; several where combinations are identical after resolution.
        id: empty if it could not be composed.
        values: its resolved configuration, nested or flat, whole or in part, from which the axes are found. Empty if it
            could not be composed; the overrides in `command` are used then.
        how: together, alone, done before, refused.
        command: runs this cell alone.
        error: why it was refused; such a cell has no record.
    """

    id: str
    numbers: list[int]
    values: dict[str, Any]
    command: str
    group: int | None = None
    wave: int | None = None
    how: str = "alone"
    error: str | None = None


@dataclass(frozen=True)
class SweepState:
    """State of a sweep in its launcher. `status`: running, completed, failed, stopped, interrupted; `started` and `finished` in ISO 8601."""

    command: str
    status: str
    started: str
    seconds: float
    finished: str | None = None
    objective: str = "loss"
    cells: list[PlannedCell] = field(default_factory=list)


def write_summary(folder: Path, sweep: SweepState) -> dict[str, Any]:
    """Summarize the records on disk, and write sweep.json and sweep.csv into `folder`. Returns the summary."""
    values = [config.flatten_keys(cell.values) if cell.values else _parse_values(cell.command) for cell in sweep.cells]
    axes = find_axes(values)
    summary = {
        "command": sweep.command,
        "folder": str(folder),
        "status": sweep.status,
        "started": sweep.started,
        "finished": sweep.finished,
        "seconds": sweep.seconds,
        "axes": axes,
        "objective": sweep.objective,
        "cells": [
            _summarize_cell(folder, cell, {key: cell_values.get(key) for key in axes}, sweep.status)
            for cell, cell_values in zip(sweep.cells, values, strict=True)
        ],
    }
    atomic_files.write_json(folder / SUMMARY_FILE, summary)
    atomic_files.write_text(folder / TABLE, _format_csv(summary))
    return summary


def find_axes(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Key → its values, for each key whose value differs between cells that have it; numbers ascending; the seed comes last."""
    axes: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for cell_values in values for key in cell_values):
        distinct = {make_key(cell_values[key]): cell_values[key] for cell_values in values if key in cell_values}
        items = list(distinct.values())
        if len(items) > 1:
            is_numeric = all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)
            axes[key] = sorted(items) if is_numeric else items
    return dict(sorted(axes.items(), key=lambda item: item[0] == SEED))


def make_key(value: Any) -> str:
    """Text that is equal for equal values: 1 equals 1.0, but neither true nor "1"."""
    return json.dumps(_normalize_numbers(value), sort_keys=True, default=str)


def _normalize_numbers(value: Any) -> Any:
    """The value with whole floats as integers."""
    if isinstance(value, dict):
        return {str(key): _normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalize_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_command(command: str) -> dict[str, str]:
    """Key → text of every override in a command."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unclosed quote
        return {}
    return {key.lstrip("+~"): text for word in words if "=" in word for key, _, text in [word.partition("=")]}


def _parse_values(command: str) -> dict[str, Any]:
    """Key → value of every override in a command; a value that is not JSON stays text."""
    values: dict[str, Any] = {}
    for key, text in parse_command(command).items():
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def _summarize_cell(folder: Path, cell: PlannedCell, values: dict[str, Any], sweep_status: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if cell.id and (folder / cell.id / RECORD).exists():
        try:
            record = records.read_record(folder / cell.id)
        except ArtifactError as error:
            record = {"status": "failed", "error": str(error)}
    attempts = len(list((folder / ATTEMPTS).glob(f"{cell.id}-*") if cell.id else []))
    training, metrics = record.get("training") or {}, record.get("metrics") or {}
    status = record.get("status") or ("failed" if cell.error else None)
    if status is None and sweep_status == "running":
        status = "waiting"
    # Of a group trained together, the record holds this cell's share of the seconds.
    cost = (record.get("joint_training") or record).get("seconds")
    return {
        "id": cell.id,
        "numbers": cell.numbers,
        "values": values,
        "status": status or ("interrupted" if attempts else "not started"),
        "error": record.get("error") or cell.error,
        "folder": cell.id,
        "group": cell.group,
        "wave": cell.wave,
        "how": cell.how,
        "seconds": _replace_nonfinite(record.get("seconds")),
        "cost_seconds": _replace_nonfinite(cost),
        "steps": training.get("steps"),
        "tokens": training.get("tokens"),
        "metrics": {when: _replace_nonfinite(metrics.get(when) or {}) for when in ("before", "after")},
        "objective": _replace_nonfinite(record.get("objective")),
        "trainable_parameters": record.get("trainable_parameters"),
        "attempts": bool(record) + attempts,
        "command": cell.command,
    }


def _replace_nonfinite(value: Any) -> Any:
    """The value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format_csv(summary: dict[str, Any]) -> str:
    """One row per cell: the axes, then the results."""
    cells, out = summary["cells"], io.StringIO()
    # In the order in which the metrics first appear, (when, name) each.
    metrics = [
        (when, name)
        for when in ("after", "before")
        for name in dict.fromkeys(name for cell in cells for name in cell["metrics"][when])
    ]
    facts = ("seconds", "cost_seconds", "steps", "tokens", "trainable_parameters", "error")
    head = ["cell", *summary["axes"], "status", "objective", *(f"{when}.{name}" for when, name in metrics), *facts]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        values = [cell["values"][key] for key in summary["axes"]]
        texts = [json.dumps(value) if isinstance(value, dict | list) or value is None else value for value in values]
        results = [cell["metrics"][when].get(name) for when, name in metrics]
        writer.writerow(
            [cell["id"], *texts, cell["status"], cell["objective"], *results, *(cell[key] for key in facts)]
        )
    return out.getvalue()
