"""Cells of a sweep trained together on one base model, against Hydra's own launcher: makespan, a step, memory; and equality on a tiny model.

Each cell: 4 rows of 128 tokens a step, all learned. `lone`: one cell after another in this process.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import equality, runs, tables
from benchmarks.gpu.contest import RANK
from benchmarks.gpu.context import HALF, TINY, Case, group_rounds, interleave
from benchmarks.gpu.flops import compute_mfu
from benchmarks.gpu.inputs import get_base, write_texts

SECONDS = 600
CONTESTANTS = ("joint_8_135m", "lone_8_135m", "joint_32_135m", "joint_8_1b", "lone_8_1b", "joint_32_1b")
TOKENS, BATCH, STEPS = (32, 4, 10) if TINY else (128, 4, 30)
# cells → ranks, learning rates
GRIDS = {
    8: ("8,16", "1e-4,2e-4,3e-4,5e-4"),
    32: ("4,8,16,32", "1e-4,2e-4,3e-4,5e-4,7e-4,1e-3,2e-3,3e-3"),
}
TINY_GRIDS = {8: ("8,16", "1e-3"), 32: ("8,16", "1e-4,3e-3")}


def list_cases() -> dict[str, Case]:
    """Name → case."""
    tests = {"equal.float32": Case(45.0), "equal.bfloat16": Case(45.0)}
    return tests | interleave({name: Case(90.0, True) for name in CONTESTANTS})


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    if case.startswith("equal."):
        return equality.compare_joint_cells(case.removeprefix("equal."))
    launcher, count, size = case.partition("@")[0].split("_")
    ranks, rates = (TINY_GRIDS if TINY else GRIDS)[int(count)]
    cells = len(ranks.split(",")) * len(rates.split(","))
    begin = time.perf_counter()
    records = run_sweep(launcher, get_base(size), ranks, rates)
    makespan = time.perf_counter() - begin
    if len(records) != cells:
        raise RuntimeError(f"{len(records)} of {cells} cells have a record")
    steps = sorted(measure_step(folder) for folder in records)
    step = steps[len(steps) // 2]
    rate = BATCH * TOKENS / step * (cells if launcher == "joint" else 1)
    return {
        "cells": cells, "makespan_s": makespan, "step_s": step, "step_per_cell_s": BATCH * TOKENS / rate, "tokens_per_second": rate,
        "peak_gib": runs.get_peak_gib(), "reserved_gib": runs.get_reserved_gib(), "objective": min(record["objective"] for record in records.values()),
    } | compute_mfu(get_base(size), RANK, TOKENS, rate)  # fmt: skip


def run_sweep(launcher: str, base: Path, ranks: str, rates: str) -> dict[Path, dict[str, Any]]:
    """Folder → record of each cell. Raises: RuntimeError: one failed."""
    from peftrun.cli.main import main

    folder = runs.new_folder(launcher)
    how = "hydra/launcher=shared_base" if launcher == "joint" else "hydra.sweep.subdir=${hydra.job.num}"
    sys.argv = [
        "peftrun", "-m", *runs.choose_base(base, HALF), "task=plain_text", f"task.data.path={write_texts(f'sweep-{TOKENS}', [TOKENS] * 256)}",
        "task.data.num_test_rows=4", f"task.max_length={TOKENS}", f"trainer.max_steps={STEPS}", "trainer.warmup_steps=0",
        f"trainer.per_device_train_batch_size={BATCH}", "trainer.logging_steps=2", "trainer.save_strategy=no", "action.evaluate_before=false",
        "action.num_samples=0", f"lora.r={ranks}", f"trainer.learning_rate={rates}", f"hydra.sweep.dir={folder}", how,
    ]  # fmt: skip
    code = main()
    runs.synchronize()
    records = {file.parent: json.loads(file.read_text()) for file in folder.glob("*/record.json")}
    errors = [record.get("error") for record in records.values() if record["status"] != "completed"]
    if code or errors:
        raise RuntimeError(f"exit code {code}; {len(errors)} of {len(records)} cells failed: {errors[:1]}")
    return records


def measure_step(folder: Path) -> float:
    """Seconds of a step, without the first third."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[len(rows) // 3], rows[-2]
    return (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Joint cells against lone ones of the same base model, in the same round."""
    grouped, rows = group_rounds(results), []
    for name, rounds in grouped.items():
        if not rounds:
            continue
        lone = grouped.get(f"lone_8_{name.rsplit('_', 1)[1]}", {})
        common = [number for number in rounds if number in lone]
        gain, memory = "-", "-"
        if common:
            rates = ([found[number]["tokens_per_second"] for number in common] for found in (rounds, lone))
            gain = report.cells(report.ratios(*rates))
        figures = list(rounds.values())[-1]
        if common and figures["peak_gib"]:
            memory = f"{figures['peak_gib'] / lone[common[-1]]['peak_gib']:.2f}"
        spreads = [report.spread(one[key] for one in rounds.values()) for key in ("makespan_s", "tokens_per_second")]
        values = [
            figures["step_s"],
            figures["step_per_cell_s"],
            figures["mfu"],
            figures["mfu_of_measured"],
            figures["peak_gib"],
        ]
        rows.append(
            [
                name,
                figures["cells"],
                report.cells(spreads[0], 1),
                report.cells(spreads[1], 0),
                gain,
                *map(tables.format_value, values),
                memory,
            ]
        )
    header = ["launcher, cells, base", "cells", "makespan, s", "tokens/s", "÷ lone", "s/step", "a cell's share, s", "MFU", "of the measured product",
              "peak GiB", "÷ a lone run's"]  # fmt: skip
    equal = {name: found for name, found in results.items() if name.startswith("equal.")}
    compared = ["Four cells together, compared with each alone:", tables.build_case_table(equal)] if equal else []
    return [report.table(header, rows), *compared]
