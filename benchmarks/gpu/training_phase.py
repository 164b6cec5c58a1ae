"""What the phases of training share: contestants take turns, a round each, and each is compared with the first on a tiny model."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import contest, equality, runs, tables
from benchmarks.gpu.contest import Rows
from benchmarks.gpu.context import WORK, Case, group_rounds, interleave
from benchmarks.gpu.inputs import count_bytes, get_base

EQUAL_STEPS = 5


def list_cases(contestants: tuple[str, ...], seconds: float, equal: tuple[str, ...]) -> dict[str, Case]:
    """The base model, `equal.NAME` of each contestant to be compared with the first, then the rounds."""
    tests = {f"equal.{name}": Case(40.0) for name in equal if name != contestants[0]}
    return {"base": Case(120.0), **tests, **interleave({name: Case(seconds, True) for name in contestants})}


def run_case(phase: str, case: str, size: str, rows: Rows, first: str) -> dict[str, Any]:
    """The figures of one case. `first`: the contestant that others are compared with."""
    name = case.partition("@")[0]
    if name == "base":
        return prepare(size, rows)
    if name.startswith("equal."):
        return compare_with_first(name.removeprefix("equal."), first, rows)
    contest.check_needs(name)
    figures = contest.measure(name, get_base(size), rows)
    if name.endswith("packed"):  # its steps have other rows
        return figures | {"losses_apart": None}
    others = WORK / f"losses-{phase}.json"
    if not others.exists():
        others.write_text(json.dumps(figures["losses"]))
    return figures | {"losses_apart": runs.compare_losses(json.loads(others.read_text()), figures["losses"])}


def prepare(size: str, rows: Rows) -> dict[str, Any]:
    """Writes base model and rows."""
    begin, folder = time.perf_counter(), get_base(size)
    contest.choose_run(folder, rows)
    seconds = time.perf_counter() - begin
    return {"gb": count_bytes(folder) / 1e9, "rows": rows.batch, "longest": rows.longest, "prepared_s": seconds}


def compare_with_first(name: str, first: str, rows: Rows) -> dict[str, Any]:
    """In float32 on the nano model: losses and trained tensors of a contestant, and of the first, on the same rows."""
    contest.check_needs(name)
    losses, adapter = train_equal(name, rows)
    mark = WORK / f"equal-{first}-{rows.name}.json"
    if not mark.exists():
        reference, folder = train_equal(first, rows)
        mark.write_text(json.dumps({"losses": reference, "adapter": str(folder)}))
    other = json.loads(mark.read_text())
    distance = runs.compare_adapters(adapter, Path(other["adapter"]))
    return equality.judge(runs.compare_losses(losses, other["losses"]), distance)


def train_equal(name: str, rows: Rows) -> tuple[list[float], Path]:
    """Losses and adapter of a few steps on rows cut at 64 tokens."""
    short = [max(8, length * 64 // rows.longest) for length in rows.lengths]
    small = Rows(f"equal-{rows.name}", short, 64, 4)
    folder = get_base("nano")
    with contest.watch_training() as watch:
        adapter = contest.train(name, folder, contest.choose_run(folder, small, "float32", EQUAL_STEPS))
    return watch.losses, adapter


def build_tables(results: dict[str, Any], first: str) -> list[str]:
    """Rates as min–median–max of the rounds, the ratio to the first contestant in the same round, memory, losses; then equality."""
    grouped = group_rounds(results)
    rows = [describe(name, rounds, grouped.get(first, {})) for name, rounds in grouped.items() if rounds]
    header = ["contestant", "tokens/s: median (min–max)", f"÷ {first}", "s/step", "first step, s", "TFLOP/s", "MFU", "of the measured product",
              "peak GiB", "padding", "loss 1", "loss last", "losses apart", "notes"]  # fmt: skip
    equal = {name.removeprefix("equal."): found for name, found in results.items() if name.startswith("equal.")}
    parts = [report.table(header, rows)] if rows else []
    if equal:
        parts += [f"On a tiny model in float32, compared with {first}:", tables.build_case_table(equal)]
    return parts


def describe(name: str, rounds: dict[int, dict[str, Any]], first: dict[int, dict[str, Any]]) -> list[Any]:
    """A row of the table."""
    rates = [figures["tokens_per_second"] for figures in rounds.values()]
    common = [number for number in rounds if number in first]
    ratio = (
        report.ratios(*([found[n]["tokens_per_second"] for n in common] for found in (rounds, first)))
        if common
        else None
    )
    figures = list(rounds.values())[-1]
    steps = report.spread(one["step_seconds"] for one in rounds.values())
    apart = max((one["losses_apart"] for one in rounds.values() if one["losses_apart"] is not None), default=None)
    notes = [f"base {figures['base_dtype']}", *(["checkpointing"] if figures["checkpointing"] else [])]
    middle = report.spread(rates)["median"] / figures["tokens_per_second"]  # of rates that belong to the last round
    shares = [figures[key] * middle if figures[key] else None for key in ("tflops", "mfu", "mfu_of_measured")]
    values = [
        steps["median"],
        next(iter(rounds.values()))["first_step_seconds"],
        *shares,
        figures["peak_gib"],
        figures["padding"],
    ]
    losses = [f"{figures['losses'][0]:.4f}", f"{figures['losses'][-1]:.4f}", "-" if apart is None else f"{apart:.4f}"]
    return [
        name, report.cells(report.spread(rates), 0), report.cells(ratio, 3) if ratio else "-", *map(tables.format_value, values), *losses,
        ", ".join(notes),
    ]  # fmt: skip
