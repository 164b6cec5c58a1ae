"""What came out of a sweep, cell by cell: sweep.json for programs, sweep.csv for tables. Read anew from the cells' records each time."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import RECORD
from peftrun.artifacts.sweep_folder import SUMMARY_FILE
from peftrun.config import values as config
from peftrun.errors import ArtifactError
from peftrun.io import atomic_files

TABLE, ATTEMPTS = "sweep.csv", "attempts"
SEED = "seed"


@dataclass(frozen=True)
class PlannedCell:
    """One cell as it was planned; everything else about it is in its record.

    Attributes:
        numbers: its places in the sweep; several where cells are identical after resolution.
        id: empty if it could not be composed.
        values: its resolved configuration, nested or flat, whole or in part: what differs between cells is found here. Empty if it
            could not be composed; then what its command says is shown.
        how: together, alone, done before, refused.
        command: what to type to run this cell alone.
        error: why it was refused, if it was: such a cell has no record.
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
    """A sweep as its launcher knows it. `status`: running, completed, failed, stopped; times as ISO 8601."""

    command: str
    status: str
    started: str
    seconds: float
    finished: str | None = None
    objective: str = "loss"
    cells: list[PlannedCell] = field(default_factory=list)


def write_summary(folder: Path, sweep: SweepState) -> dict[str, Any]:
    """The summary of the sweep as it stands on disk now; sweep.json and sweep.csv in `folder` then hold it."""
    values = [config.flatten_keys(cell.values) if cell.values else _parse_values(cell.command) for cell in sweep.cells]
    found = find_axes(values)
    summary = {
        "command": sweep.command,
        "folder": str(folder),
        "status": sweep.status,
        "started": sweep.started,
        "finished": sweep.finished,
        "seconds": sweep.seconds,
        "axes": found,
        "objective": sweep.objective,
        "cells": [
            _summarize_cell(folder, cell, {key: own.get(key) for key in found}, sweep.status)
            for cell, own in zip(sweep.cells, values, strict=True)
        ],
    }
    atomic_files.write_json(folder / SUMMARY_FILE, summary)
    atomic_files.write_text(folder / TABLE, _format_csv(summary))
    return summary


def find_axes(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Key → its values, for each key whose value differs between cells that have it; numbers ascending; the seed comes last."""
    keys = dict.fromkeys(key for one in values for key in one)
    found = {key: _list_distinct([one[key] for one in values if key in one]) for key in keys}
    differing = {key: items for key, items in found.items() if len(items) > 1}
    return dict(sorted(differing.items(), key=lambda item: item[0] == SEED))


def make_key(value: Any) -> str:
    """A value of any kind as text by which it is told from others: 1 is 1.0, but neither true nor "1"."""
    return json.dumps(_normalize_numbers(value), sort_keys=True, default=str)


def _normalize_numbers(value: Any) -> Any:
    """The value, numbers without a fraction as integers."""
    if isinstance(value, dict):
        return {str(key): _normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalize_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_command(command: str) -> dict[str, str]:
    """Key → text of every override in a command."""
    try:
        parts = shlex.split(command)
    except ValueError:  # an unfinished quotation
        return {}
    return {key.lstrip("+~"): text for part in parts if "=" in part for key, _, text in [part.partition("=")]}


def _parse_values(command: str) -> dict[str, Any]:
    return {key: _parse_value(text) for key, text in parse_command(command).items()}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _list_distinct(values: list[Any]) -> list[Any]:
    found = list({make_key(value): value for value in values}.values())
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return sorted(found) if numbers else found


def _read_record(cell: Path) -> dict[str, Any]:
    """The record of a cell; none if it has not begun. One that is damaged is a failed cell, told as such."""
    if not (cell / RECORD).exists():
        return {}
    try:
        return atomic_files.read_json(cell / RECORD)
    except ArtifactError as error:
        return {"status": "failed", "error": str(error)}


def _compute_status(cell: PlannedCell, record: dict[str, Any], attempts: int, sweep: str) -> str:
    """Of a cell without a record: what becomes of it, or, once the sweep has ended, that nothing did."""
    if record.get("status") or cell.error:
        return str(record.get("status") or "failed")
    if sweep == "running":
        return "waiting"
    return "interrupted" if attempts else "not started"


def _summarize_cell(folder: Path, cell: PlannedCell, values: dict[str, Any], sweep: str) -> dict[str, Any]:
    record = _read_record(folder / cell.id) if cell.id else {}
    attempts = len(list((folder / ATTEMPTS).glob(f"{cell.id}-*") if cell.id else []))
    training, metrics = record.get("training") or {}, record.get("metrics") or {}
    return {
        "id": cell.id,
        "numbers": cell.numbers,
        "values": values,
        "status": _compute_status(cell, record, attempts, sweep),
        "error": record.get("error") or cell.error,
        "folder": cell.id,
        "group": cell.group,
        "wave": cell.wave,
        "how": cell.how,
        "seconds": _replace_nonfinite(record.get("seconds")),
        "cost_seconds": _compute_cost(record),
        "steps": training.get("steps"),
        "tokens": training.get("tokens"),
        "metrics": {when: _replace_nonfinite(metrics.get(when) or {}) for when in ("before", "after")},
        "objective": _replace_nonfinite(record.get("objective")),
        "trainable_parameters": record.get("trainable_parameters"),
        "attempts": bool(record) + attempts,
        "command": cell.command,
    }


def _compute_cost(record: dict[str, Any]) -> float | None:
    """Seconds that a cell has cost: its own, or of those of the group that it was trained in its part, which its record says."""
    together = record.get("together")
    return _replace_nonfinite(together["seconds"] if together else record.get("seconds"))


def _replace_nonfinite(value: Any) -> Any:
    """NaN and infinities are no JSON: None."""
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format_csv(summary: dict[str, Any]) -> str:
    """One row a cell: the axes, then what came out."""
    cells, out = summary["cells"], io.StringIO()
    measured = [(when, key) for when in ("after", "before") for key in _list_metrics(cells, when)]
    plain = ("seconds", "cost_seconds", "steps", "tokens", "trainable_parameters", "error")
    head = ["cell", *summary["axes"], "status", "objective", *(f"{when}.{key}" for when, key in measured), *plain]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        values = [_format_text(cell["values"][key]) for key in summary["axes"]]
        results = [cell["metrics"][when].get(key) for when, key in measured]
        writer.writerow(
            [cell["id"], *values, cell["status"], cell["objective"], *results, *(cell[key] for key in plain)]
        )
    return out.getvalue()


def _list_metrics(cells: list[dict[str, Any]], when: str) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell["metrics"][when]))


def _format_text(value: Any) -> Any:
    """Lists and mappings as JSON; what is plain as it is."""
    return json.dumps(value) if isinstance(value, dict | list) or value is None else value
