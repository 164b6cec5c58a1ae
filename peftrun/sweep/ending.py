"""The end of a sweep on the terminal: what became of each cell, which configuration is best, where the report is, what to type next. Light."""

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
from peftrun.sweep.statistics import Configuration, Findings

Summary = dict[str, Any]


def format_ending(summary: Summary, batch: Collection[int], labels: dict[int, str], folder: Path) -> list[str]:
    """At the end of a sweep, or of a batch of a search: a row for each of its cells, then what there is in all.

    Args: summary: what sweep.json holds. batch: numbers of the cells. labels: first number of a cell → what was typed for it.
    """
    counts = Counter(cell["status"] for cell in summary["cells"])
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    findings = statistics.analyze_sweep(summary)
    return [
        *_format_cells(summary, batch, labels),
        "",
        f"sweep  {said}: {console.shorten_path(folder)}",
        *_format_best(summary, findings, folder),
        f"report {console.shorten_path(folder / REPORT_PAGE)}",
        *_format_next_commands(findings, folder),
    ]


def build_sweep_error(
    failed: Sequence[tuple[Cell, Sequence[str]]], labels: dict[int, str], cells: int, planned: bool = False
) -> SweepError | None:
    """One line for each reason, with the cells it holds for, and how to go on."""
    if not failed:
        return None
    reasons: dict[str, list[Cell]] = {}
    for cell, lines in failed:
        for line in lines:
            reasons.setdefault(line, []).append(cell)
    told = [f"{_name_cells(which, labels)}: {line}" for line, which in reasons.items()]
    said = "failed; type the same command to run those again; what is done stays as it is"
    if planned:
        said = "cannot be run as typed; mend the values, or leave these out"
    return SweepError(*told, f"{len(failed)} of {format_count(cells, 'cell')} {said}")


def _name_cells(cells: Sequence[Cell], labels: dict[int, str]) -> str:
    first = cells[0]
    more = f" and {format_count(len(cells) - 1, 'other cell')}" if len(cells) > 1 else ""
    return f"cell {first.id or first.numbers[0]} ({labels[first.numbers[0]]}){more}"


def _format_cells(summary: Summary, batch: Collection[int], labels: dict[int, str]) -> list[str]:
    name = summary["objective"]
    rows = [("cell", "status", name, "seconds", "values")]
    for cell in summary["cells"]:
        if not {*cell["numbers"]} & {*batch}:
            continue
        text = labels[cell["numbers"][0]] + format_duplicates(cell["numbers"])
        rows.append(
            (
                cell["id"] or "-",
                cell["status"],
                _format_change(cell, name),
                _format_figure(cell["seconds"], ".1f"),
                text,
            )
        )
    return align_rows(rows)


def _format_best(summary: Summary, findings: Findings, folder: Path) -> Iterator[str]:
    """The configuration with the lowest mean over its seeds, and its best cell."""
    found = _find_best(findings)
    if found is None:
        return
    one, cell = found
    scores, name = one.scores.values(), summary["objective"]
    seeds = f", the mean of {len(scores)} seeds ({min(scores):.4f} to {max(scores):.4f})" if len(scores) > 1 else ""
    values = f" with {one.name}" if one.values else ""
    who = "its best cell " if len(scores) > 1 else ""
    yield f"best   {name} {one.mean:.4f}{seeds}{values}: {who}{console.shorten_path(folder / cell['folder'])}"
    if findings.note and len(findings.configurations) > 1:
        yield f"note   {findings.note}"


def _find_best(findings: Findings) -> tuple[Configuration, dict[str, Any]] | None:
    """The best configuration, and the completed cell of it with the lowest objective."""
    one = next((one for one in findings.configurations if one.scores), None)
    if one is None:
        return None
    return one, min(filter(statistics.is_counted, one.cells), key=lambda cell: float(cell["objective"]))


def _format_next_commands(findings: Findings, folder: Path) -> Iterator[str]:
    found = _find_best(findings)
    if found is None or not (folder / found[1]["folder"] / ADAPTER).is_dir():
        return
    run = folder / found[1]["folder"]
    adapter, typed, places = (
        shlex.quote(console.shorten_path(run)),
        run_overrides.read_typed_overrides(run),
        run_overrides.read_config_places(run),
    )
    yield ""
    yield "next:"
    for action in ("reload", "merge"):
        yield f"  {run_overrides.add_shared_overrides(f'peftrun action={action} adapter={adapter}', typed, places)}"


def _format_change(cell: dict[str, Any], name: str) -> str:
    before, after = cell["metrics"]["before"].get(name), cell["objective"]
    return (
        f"{_format_figure(before, '.4f')} → {_format_figure(after, '.4f')}"
        if before is not None
        else _format_figure(after, ".4f")
    )


def _format_figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
