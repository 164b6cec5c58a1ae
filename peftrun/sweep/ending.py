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
from peftrun.formatting import align_rows, many
from peftrun.sweep import statistics
from peftrun.sweep.cells import Cell
from peftrun.sweep.console_tables import twice
from peftrun.sweep.statistics import Configuration, Findings

Summary = dict[str, Any]


def lines(summary: Summary, batch: Collection[int], labels: dict[int, str], folder: Path) -> list[str]:
    """At the end of a sweep, or of a batch of a search: a row for each of its cells, then what there is in all.

    Args: summary: what sweep.json holds. batch: numbers of the cells. labels: first number of a cell → what was typed for it.
    """
    counts = Counter(cell["status"] for cell in summary["cells"])
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    findings = statistics.of(summary)
    return [
        *_cells(summary, batch, labels),
        "",
        f"sweep  {said}: {console.short(folder)}",
        *_best(summary, findings, folder),
        f"report {console.short(folder / REPORT_PAGE)}",
        *_next(findings, folder),
    ]


def fault(
    failed: Sequence[tuple[Cell, Sequence[str]]], labels: dict[int, str], cells: int, planned: bool = False
) -> SweepError | None:
    """One line for each reason, with the cells it holds for, and how to go on."""
    if not failed:
        return None
    reasons: dict[str, list[Cell]] = {}
    for cell, lines in failed:
        for line in lines:
            reasons.setdefault(line, []).append(cell)
    told = [f"{_named(which, labels)}: {line}" for line, which in reasons.items()]
    said = "failed; type the same command to run those again; what is done stays as it is"
    if planned:
        said = "cannot be run as typed; mend the values, or leave these out"
    return SweepError(*told, f"{len(failed)} of {many(cells, 'cell')} {said}")


def _named(cells: Sequence[Cell], labels: dict[int, str]) -> str:
    first = cells[0]
    more = f" and {many(len(cells) - 1, 'other cell')}" if len(cells) > 1 else ""
    return f"cell {first.id or first.numbers[0]} ({labels[first.numbers[0]]}){more}"


def _cells(summary: Summary, batch: Collection[int], labels: dict[int, str]) -> list[str]:
    name = summary["objective"]
    rows = [("cell", "status", name, "seconds", "values")]
    for cell in summary["cells"]:
        if not {*cell["numbers"]} & {*batch}:
            continue
        text = labels[cell["numbers"][0]] + twice(cell["numbers"])
        rows.append((cell["id"] or "-", cell["status"], _change(cell, name), _figure(cell["seconds"], ".1f"), text))
    return align_rows(rows)


def _best(summary: Summary, findings: Findings, folder: Path) -> Iterator[str]:
    """The configuration with the lowest mean over its seeds, and its best cell."""
    found = _first(findings)
    if found is None:
        return
    one, cell = found
    scores, name = one.scores.values(), summary["objective"]
    seeds = f", the mean of {len(scores)} seeds ({min(scores):.4f} to {max(scores):.4f})" if len(scores) > 1 else ""
    values = f" with {one.name}" if one.values else ""
    who = "its best cell " if len(scores) > 1 else ""
    yield f"best   {name} {one.mean:.4f}{seeds}{values}: {who}{console.short(folder / cell['folder'])}"
    if findings.note and len(findings.configurations) > 1:
        yield f"note   {findings.note}"


def _first(findings: Findings) -> tuple[Configuration, dict[str, Any]] | None:
    """The best configuration, and the completed cell of it with the lowest objective."""
    one = next((one for one in findings.configurations if one.scores), None)
    if one is None:
        return None
    return one, min(filter(statistics.counts, one.cells), key=lambda cell: float(cell["objective"]))


def _next(findings: Findings, folder: Path) -> Iterator[str]:
    found = _first(findings)
    if found is None or not (folder / found[1]["folder"] / ADAPTER).is_dir():
        return
    run = folder / found[1]["folder"]
    adapter, typed, places = shlex.quote(console.short(run)), run_overrides.typed(run), run_overrides.places(run)
    yield ""
    yield "next:"
    for action in ("reload", "merge"):
        yield f"  {run_overrides.on_the_same(f'peftrun action={action} adapter={adapter}', typed, places)}"


def _change(cell: dict[str, Any], name: str) -> str:
    before, after = cell["metrics"]["before"].get(name), cell["objective"]
    return f"{_figure(before, '.4f')} → {_figure(after, '.4f')}" if before is not None else _figure(after, ".4f")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
