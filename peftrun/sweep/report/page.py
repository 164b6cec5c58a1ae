"""report.html: the results of a sweep on one page, without scripts, network access or other files."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from peftrun.artifacts import records
from peftrun.artifacts.run_layout import REPORT_PAGE
from peftrun.artifacts.sweep_folder import SUMMARY_FILE
from peftrun.errors import ArtifactError
from peftrun.formatting import format_duration, format_figure, select_finite
from peftrun.io import atomic_files
from peftrun.results.report.html import (
    read_metrics,
    render_both_widths,
    render_definitions,
    render_document,
    render_folded_list,
)
from peftrun.sweep import statistics
from peftrun.sweep.report import charts, tables
from peftrun.sweep.report.charts import Curve, RankedConfiguration
from peftrun.sweep.statistics import Findings

SHOWN = 24  # rows outside the fold
FEW, MOST = 6, 400  # comparisons of an axis: up to FEW are all outside the fold; at most MOST are listed
SIGNS = {
    "completed": "✓",
    "failed": "✗",
    "stopped": "■",
    "interrupted": "‖",
    "running": "▶",
    "waiting": "…",
    "not started": "○",
}
CURVES = {"loss": "loss", "eval_loss": "validation loss"}


@dataclass(frozen=True)
class _Page:
    """Data of all sections."""

    folder: Path
    summary: dict[str, Any]
    findings: Findings
    ranked: list[RankedConfiguration]

    @property
    def cells(self) -> list[dict[str, Any]]:
        return self.findings.cells

    @property
    def objective(self) -> str:
        return self.summary["objective"]


def write_sweep_report(folder: Path) -> Path:
    """Write report.html from sweep.json and the current files of the cells. Returns its path.

    Raises: ArtifactError: `folder` holds no readable sweep.json, or the file cannot be written.
    """
    summary = atomic_files.read_json(folder / SUMMARY_FILE)
    findings = statistics.analyze_sweep(summary)
    page = _Page(folder, summary, findings, charts.rank_configurations(findings.configurations))
    sections = (
        _render_headline,
        _render_state,
        _render_configurations,
        _render_comparisons,
        _render_curves,
        _render_map,
        _render_cost,
        _render_about,
    )
    body = (html for section in sections for html in section(page))
    atomic_files.write_text(folder / REPORT_PAGE, "".join(render_document(_format_title(page), body)))
    return folder / REPORT_PAGE


def _format_title(page: _Page) -> str:
    count, axes = len(page.cells), list(page.cells[0]["values"]) if page.cells else []
    return f"Sweep of {count} {'cell' if count == 1 else 'cells'}{': ' if axes else ''}{' × '.join(axes)}"


def find_best_cell(cells: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The completed cell with the lowest objective; None if there is none."""
    return min(filter(statistics.is_counted, cells), key=lambda cell: cell["objective"], default=None)


def _render_headline(page: _Page) -> Iterator[str]:
    yield f"<h1>{escape(_format_title(page))}</h1>"
    cell = find_best_cell(page.cells)
    if cell is None:
        yield '<div class="card"><strong>No cell is completed yet</strong>, so there is no best one.</div>'
        return
    yield f'<div class="card"><div>Best {escape(page.objective)} after training, on evaluation rows</div><div class="value">{format_figure(cell["objective"])}</div>'
    before = cell["metrics"]["before"].get(page.objective)
    compared = "" if before is None else f"; before training {format_figure(before)}"
    yield f"<div>{escape(statistics.label_cell(cell))}{compared}</div>"
    yield '<p class="soft">To reproduce it, type (a click selects the whole command):</p>'
    yield f'<pre tabindex="0"><code>{escape(cell["command"])}</code></pre>'
    yield f'<p class="soft">Its run folder: <code>{escape(str(Path(page.summary["folder"]) / cell["folder"]))}</code></p>'
    # Selection bias of the lowest of many, and whether the best cell's configuration is also the best on average.
    count = sum(map(statistics.is_counted, page.cells))
    first = page.findings.configurations[0]
    is_other = len(first.scores) > 1 and all(member["id"] != cell["id"] for member in first.cells)
    mean = f" By the mean over seeds another configuration comes first: {first.name}." if is_other else ""
    bias = f"The lowest of {count} on the same rows: expect a little worse on new ones." if count > 1 else ""
    yield f'<p class="soft">{escape(bias + mean)}</p></div>' if bias or mean else "</div>"


def _render_state(page: _Page) -> Iterator[str]:
    counts = Counter(cell["status"] for cell in page.cells)
    yield f'<h2>State: {escape(page.summary["status"])}</h2><ul class="chips">'
    for status in sorted(counts, key=lambda status: [*SIGNS, status].index(status)):  # unknown ones last
        yield f'<li class="{escape(status)}">{SIGNS.get(status, "?")} {counts[status]} {escape(status)}</li>'
    duplicates = sum(len(cell["numbers"]) - 1 for cell in page.cells)
    yield f"<li>{duplicates} identical to another, run once</li></ul>" if duplicates > 0 else "</ul>"
    yield from render_folded_list(
        [f"<li>{escape(line)}</li>" for line in page.findings.left_out], FEW, "cells that are not counted", "ul"
    )


def _render_configurations(page: _Page) -> Iterator[str]:
    yield "<h2>Configurations</h2>"
    yield f'<p class="soft">Mean {escape(page.objective)} over seeds, lowest first; ± half of its 95 % confidence interval (Student). In the drawing: a ring per seed, a stroke for the mean, '
    yield "a band for the interval; an arrow where the band goes on.</p>"
    yield from _fold_table(
        page.ranked, "configurations", lambda rows: tables.render_configurations(rows, page.findings, page.objective)
    )


def _fold_table(rows: Sequence[Any], name: str, render: Callable[[Sequence[Any]], str]) -> Iterator[str]:
    """A table of the first rows, and one of the others inside a fold."""
    if rows:
        yield render(rows[:SHOWN])
    if rows[SHOWN:]:
        yield f"<details><summary>{len(rows[SHOWN:])} more {name}</summary>{render(rows[SHOWN:])}</details>"


def _render_comparisons(page: _Page) -> Iterator[str]:
    if len(page.findings.configurations) < 2:
        return
    yield "<h2>Significant differences</h2>"
    if page.findings.note:
        yield f"<p>{escape(page.findings.note)}</p>"
        return
    yield '<p class="soft">Paired over the seeds that both have, two-sided, at 5 %; within an axis corrected for the number of comparisons (Holm). “No difference shown” means that these seeds do not show one; significant differences are in bold.</p>'
    best = page.findings.configurations[0]
    for axis in page.findings.axes:
        differences = [difference for difference in page.findings.differences if difference.axis == axis]
        if not differences:
            continue
        about_best = [difference for difference in differences if best in (difference.first, difference.second)]
        others = [difference for difference in differences if best not in (difference.first, difference.second)]
        items = []
        for difference in [*about_best, *others][:MOST]:
            sentence = escape(difference.format_sentence(page.objective))
            items.append(
                f"<li><strong>{sentence}</strong></li>" if difference.is_significant else f"<li>{sentence}</li>"
            )
        shown = len(items) if len(items) <= FEW else max(len(about_best), 1)
        yield f"<h3>{escape(axis)}</h3>"
        yield from render_folded_list(items, shown, "comparisons", "ul")
    if not page.findings.differences:
        yield "<p>No two configurations differ in one axis only and share two seeds.</p>"


def _render_curves(page: _Page) -> Iterator[str]:
    metrics = {cell["id"]: read_metrics(page.folder / cell["folder"]) for cell in page.cells}
    ranks = {cell["id"]: ranked.rank for ranked in page.ranked for cell in ranked.configuration.cells}
    figures = []
    for key, title in CURVES.items():
        curves = [
            Curve(statistics.label_cell(cell), ranks[cell["id"]], cell["status"], points)
            for cell in page.cells
            if (points := select_finite(metrics[cell["id"]], key))
        ]
        if curves:
            draw = functools.partial(charts.draw_curves, curves, title)
            figures.append(render_both_widths(f"curves-{key}", draw))
    if not figures:
        return
    lettered = [ranked for ranked in page.ranked if ranked.rank is not None]
    items = [f"<li>{tables.render_badge(ranked)} {escape(ranked.configuration.name)}</li>" for ranked in lettered]
    others = len(page.ranked) - len(lettered)
    more = f'<li><span class="badge">·</span> {others} other{"s" if others > 1 else ""}</li>' if others else ""
    legend = f'<ul class="legend">{"".join(items)}{more}</ul>'
    yield '<h2>Learning curves</h2><p class="soft">A line per cell, its configuration by letter and color. Dashed: not completed; ✗ where it failed, ■ where it was ended early. '
    yield f"Long curves are drawn as means of neighboring steps.</p>{legend}{''.join(figures)}"


def _render_map(page: _Page) -> Iterator[str]:
    axes = page.findings.axes
    if not axes or all(ranked.configuration.mean is None for ranked in page.ranked):
        return
    # A heat map needs two axes, and is readable only if at least half of the grid has a configuration.
    is_grid = len(axes) == 2 and 2 * len(page.ranked) >= math.prod(map(len, axes.values()))
    draw = charts.draw_heat_map if is_grid else charts.draw_parallel_coordinates
    yield f"<h2>{'Heat map' if is_grid else 'All axes at once'}</h2>"
    caption = "The stronger the shade, the lower" if is_grid else "A line per configuration; on the last axis its mean"
    yield f'<p class="soft">{caption} {escape(page.objective)}{"; the lowest is framed" if is_grid else ""}.</p>'
    yield render_both_widths("map", lambda name, width: draw(name, axes, page.ranked, width, page.objective))


def _render_cost(page: _Page) -> Iterator[str]:
    total = sum(cell.get("cost_seconds") or 0.0 for cell in page.cells)
    yield f'<h2>Cells and their cost</h2><p class="soft">{format_duration(total)} of training and evaluation in all cells together. '
    yield "Of cells that were trained together, each is charged its share of the group's time. Parameters: trainable ones.</p>"
    yield from _fold_table(
        page.cells, "cells", lambda rows: tables.render_cells(page.folder, rows, page.cells, page.objective)
    )


def _render_about(page: _Page) -> Iterator[str]:
    record: dict[str, Any] = {}
    for cell in sorted(page.cells, key=lambda cell: cell["status"] != "completed"):  # an incomplete record lacks facts
        with suppress(ArtifactError):
            record = records.read_record(page.folder / cell["folder"])
            break
    base = record.get("base") or {}
    versions = ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items())
    fingerprint = base.get("fingerprint") or ""
    if isinstance(fingerprint, dict):
        fingerprint = ", ".join(f"{key} {value}" for key, value in fingerprint.items() if value)
    facts = {
        "Folder": page.summary["folder"],
        "Started": page.summary["started"],
        "Finished": page.summary["finished"] or "not yet",
        "Took": format_duration(page.summary["seconds"]),
        "Base model": base.get("name"),
        "Fingerprint of the base model": fingerprint,
        "Data": ", ".join(f"{key} {value}" for key, value in (record.get("data") or {}).items()),
        "Device": record.get("device"),
        "Platform": record.get("platform"),
        "Git commit": record.get("git_commit"),
        "Versions": versions,
        "Report written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    yield f'<h2>What was run</h2><pre tabindex="0"><code>{escape(page.summary["command"])}</code></pre>{render_definitions(facts)}'
