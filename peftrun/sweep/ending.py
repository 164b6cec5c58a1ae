"""Summary of a sweep on the terminal: status of each cell, the best configuration, the report's path, commands to type next. Light."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.artifacts.run_layout import ADAPTER, REPORT_PAGE
from peftrun.errors import SweepError
from peftrun.formatting import align_rows, format_count
from peftrun.sweep import statistics
from peftrun.sweep.cells import Cell
from peftrun.sweep.console_tables import format_duplicates
from peftrun.sweep.statistics import Findings

Summary = dict[str, Any]


def format_ending(summary: Summary, batch: Collection[int], labels: dict[int, str], folder: Path) -> list[str]:
    """Lines at the end of a sweep, or of a batch of a search: a row for each cell of the batch, then totals of the whole sweep.

    Args: summary: content of sweep.json. batch: numbers of the cells. labels: first number of a cell → its overrides.
    """
    counts = Counter(cell["status"] for cell in summary["cells"])
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    objective = summary["objective"]
    rows = [("cell", "status", objective, "seconds", "values")]
    for cell in summary["cells"]:
        if not {*cell["numbers"]} & {*batch}:
            continue
        before, after = cell["metrics"]["before"].get(objective), _format_number(cell["objective"], ".4f")
        rows.append(
            (
                cell["id"] or "-",
                cell["status"],
                after if before is None else f"{_format_number(before, '.4f')} → {after}",
                _format_number(cell["seconds"], ".1f"),
                labels[cell["numbers"][0]] + format_duplicates(cell["numbers"]),
            )
        )
    return [
        *align_rows(rows),
        "",
        f"sweep  {statuses}: {console.shorten_path(folder)}",
        *_format_best(summary, statistics.analyze_sweep(summary), folder),
    ]


def build_sweep_error(
    failed: Sequence[tuple[Cell, Sequence[str]]], labels: dict[int, str], cells: int, planned: bool = False
) -> SweepError | None:
    """An error with one line for each reason and its cells, then how to go on; None if no cell failed."""
    if not failed:
        return None
    cells_by_reason: dict[str, list[Cell]] = {}
    for cell, reasons in failed:
        for reason in reasons:
            cells_by_reason.setdefault(reason, []).append(cell)
    lines = []
    for reason, (first, *others) in cells_by_reason.items():
        more = f" and {format_count(len(others), 'other cell')}" if others else ""
        lines.append(f"cell {first.id or first.numbers[0]} ({labels[first.numbers[0]]}){more}: {reason}")
    advice = "failed; type the same command to run those again; what is done stays as it is"
    if planned:
        advice = "cannot be run as typed; fix the values, or leave these out"
    return SweepError(*lines, f"{len(failed)} of {format_count(cells, 'cell')} {advice}")


def _format_best(summary: Summary, findings: Findings, folder: Path) -> Iterator[str]:
    """The configuration with the lowest mean over its seeds and its best cell; the report; commands for that cell's adapter."""
    report = f"report {console.shorten_path(folder / REPORT_PAGE)}"
    best = next((configuration for configuration in findings.configurations if configuration.scores), None)
    if best is None:
        yield report
        return
    cell = min(filter(statistics.is_counted, best.cells), key=lambda cell: float(cell["objective"]))
    run = folder / cell["folder"]
    scores, objective = best.scores.values(), summary["objective"]
    has_seeds = len(scores) > 1
    seeds = f", the mean of {len(scores)} seeds ({min(scores):.4f} to {max(scores):.4f})" if has_seeds else ""
    values = f" with {best.name}" if best.values else ""
    which = "its best cell " if has_seeds else ""
    yield f"best   {objective} {best.mean:.4f}{seeds}{values}: {which}{console.shorten_path(run)}"
    if findings.note and len(findings.configurations) > 1:
        yield f"note   {findings.note}"
    yield report
    if not (run / ADAPTER).is_dir():
        return
    adapter = shlex.quote(console.shorten_path(run))
    typed, config_dirs = run_overrides.read_typed_overrides(run), run_overrides.read_config_places(run)
    yield ""
    yield "next:"
    for action in ("reload", "merge"):
        command = f"peftrun action={action} adapter={adapter}"
        yield f"  {run_overrides.add_shared_overrides(command, typed, config_dirs)}"


def _format_number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
