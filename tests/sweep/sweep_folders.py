"""Sweep folders as a launcher leaves them, written in milliseconds."""

import json
import math
from itertools import product
from pathlib import Path

from peftrun.sweep.summary import PlannedCell, SweepState, write_summary

FINGERPRINT = "79670eeba85b"


def record(objective=None, status="completed", **more) -> dict:
    """What dispatch leaves of a cell."""
    measured = (
        {}
        if objective is None
        else {"objective": objective, "metrics": {"before": {"loss": 4.0}, "after": {"loss": objective}}}
    )
    return {
        "status": status, "seconds": 2.5, "trainable_parameters": 1000, "training": {"steps": 20, "tokens": 640},
        "versions": {"torch": "2.8.0"}, "base": {"name": "tiny", "fingerprint": {"weights": FINGERPRINT}}, **measured, **more,
    }  # fmt: skip


def put(folder: Path, name: str, found: dict, rows=()) -> None:
    """A cell's folder: its record, its curve."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "record.json").write_text(json.dumps(found))
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(name: str, number: int, values: dict) -> PlannedCell:
    """A cell as its launcher hands it over, with the command that runs it alone."""
    return PlannedCell(
        name, [number], values, " ".join(["peftrun", *(f"{key}={value}" for key, value in values.items())])
    )


def sweep(cells, **more) -> SweepState:
    return SweepState(**({"command": "peftrun -m lora.r=4,8", "status": "completed", "started": "2026-01-01T00:00:00+00:00", "seconds": 9.0, "cells": cells} | more))  # fmt: skip


def grid(folder: Path, axes: dict, score, steps=20) -> dict:
    """A sweep of every combination; `score` gives a cell's objective or the record of one that has none."""
    cells = []
    for number, values in enumerate(product(*axes.values())):
        chosen, name = dict(zip(axes, values, strict=True)), f"cell{number:08d}"
        found = score(**{key.rpartition(".")[2]: value for key, value in chosen.items()})
        rows = [
            {"step": step, "loss": 4 * math.exp(-step / 5) + 0.1, "num_tokens": 32 * step}
            for step in range(1, steps + 1)
        ]
        put(
            folder,
            name,
            found if isinstance(found, dict) else record(found),
            [*rows, {"step": steps, "eval_loss": 0.2}],
        )
        cells.append(planned(name, number, chosen))
    return write_summary(folder, sweep(cells))
