"""report.html: what a sweep has found, on one page that needs no script, no network and no other file."""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import RECORD, REPORT_PAGE
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
from peftrun.sweep.statistics import Findings, PairedDifference

SHOWN = 24  # rows in sight; the others are folded away
FEW, MOST = 6, 400  # sentences of an axis: all in sight if they are few; the surest of them if they are many
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
    """What all sections look at."""

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
    """The path of report.html, made of sweep.json and the files of the cells as they are now.

    Raises: ArtifactError: `folder` holds no readable sweep.json, or the disk refused.
    """
    summary = atomic_files.read_json(folder / SUMMARY_FILE)
    findings = statistics.analyze_sweep(summary)
    page = _Page(folder, summary, findings, charts.rank_configurations(findings.configurations))
    atomic_files.write_text(folder / REPORT_PAGE, "".join(_render_document(page)))
    return folder / REPORT_PAGE


def _render_document(page: _Page) -> Iterator[str]:
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
    yield from render_document(_format_title(page), (part for section in sections for part in section(page)))


def _format_title(page: _Page) -> str:
    count, axes = len(page.cells), [key for key in page.cells[0]["values"]] if page.cells else []
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
    yield f'<div class="card"><div>Best {escape(page.objective)} after training, on held-out rows</div><div class="value">{format_figure(cell["objective"])}</div>'
    yield f"<div>{escape(statistics.label_cell(cell))}{_format_before(cell, page.objective)}</div>"
    yield '<p class="soft">To reproduce it, type (a click selects the whole command):</p>'
    yield f'<pre tabindex="0"><code>{escape(cell["command"])}</code></pre>'
    yield f'<p class="soft">Its run folder: <code>{escape(str(Path(page.summary["folder"]) / cell["folder"]))}</code></p>{_render_caution(page, cell)}</div>'


def _format_before(cell: dict[str, Any], objective: str) -> str:
    value = cell["metrics"]["before"].get(objective)
    return "" if value is None else f"; before training {format_figure(value)}"


def _render_caution(page: _Page, cell: dict[str, Any]) -> str:
    """What choosing the lowest of many means, and whether its configuration is the best on average too."""
    count = sum(map(statistics.is_counted, page.cells))
    first = page.findings.configurations[0]
    other = len(first.scores) > 1 and all(one["id"] != cell["id"] for one in first.cells)
    mean = f" By the mean over seeds another configuration comes first: {first.name}." if other else ""
    lucky = f"The lowest of {count} on the same rows: expect a little worse on new ones." if count > 1 else ""
    return f'<p class="soft">{escape(lucky + mean)}</p>' if lucky or mean else ""


def _render_state(page: _Page) -> Iterator[str]:
    counts = Counter(cell["status"] for cell in page.cells)
    yield f'<h2>State: {escape(page.summary["status"])}</h2><ul class="chips">'
    for status in sorted(counts, key=lambda one: [*SIGNS, one].index(one)):
        yield f'<li class="{escape(status)}">{SIGNS.get(status, "?")} {counts[status]} {escape(status)}</li>'
    twins = sum(len(cell["numbers"]) - 1 for cell in page.cells)
    yield f"<li>{twins} identical to another, run once</li></ul>" if twins > 0 else "</ul>"
    yield from render_folded_list(
        [f"<li>{escape(line)}</li>" for line in page.findings.left_out], FEW, "cells that are not counted", "ul"
    )


def _render_configurations(page: _Page) -> Iterator[str]:
    yield "<h2>Configurations</h2>"
    yield f'<p class="soft">Mean {escape(page.objective)} over seeds, lowest first; ± half of its 95 % Student interval. In the drawing: a ring a seed, a stroke for the mean, '
    yield "a band for the interval; an arrow where the band goes on.</p>"
    for rows in (page.ranked[:SHOWN], page.ranked[SHOWN:]):
        if rows:
            table = tables.render_configurations(rows, page.findings, page.objective)
            yield (
                table
                if rows[0] is page.ranked[0]
                else f"<details><summary>{len(rows)} more configurations</summary>{table}</details>"
            )


def _render_comparisons(page: _Page) -> Iterator[str]:
    if len(page.findings.configurations) < 2:
        return
    yield "<h2>What can be told apart</h2>"
    if page.findings.note:
        yield f"<p>{escape(page.findings.note)}</p>"
        return
    yield '<p class="soft">Paired over the seeds that both have, two-sided, at 5 %; within an axis corrected for the number of comparisons (Holm). “Not better” means that these seeds do not show it; in bold what they show.</p>'
    for axis in page.findings.axes:
        found = [one for one in page.findings.differences if one.axis == axis]
        if found:
            yield f"<h3>{escape(axis)}</h3>"
            yield from render_folded_list(*_sort_comparisons(page, found), "comparisons", "ul")
    if not page.findings.differences:
        yield "<p>No two configurations differ in one axis only and share two seeds.</p>"


def _sort_comparisons(page: _Page, found: list[PairedDifference]) -> tuple[list[str], int]:
    """Sentences, those about the best configuration first, and how many are to be in sight."""
    top = page.findings.configurations[0]
    ordered = sorted(found, key=lambda one: one.first is not top and one.second is not top)
    about = sum(one.first is top or one.second is top for one in found)
    lines = [
        _render_comparison(escape(one.format_sentence(page.objective)), one.is_significant) for one in ordered[:MOST]
    ]
    return lines, len(lines) if len(lines) <= FEW else max(about, 1)


def _render_comparison(sentence: str, strong: bool) -> str:
    return f"<li><strong>{sentence}</strong></li>" if strong else f"<li>{sentence}</li>"


def _render_curves(page: _Page) -> Iterator[str]:
    rows = {cell["id"]: read_metrics(page.folder / cell["folder"]) for cell in page.cells}
    places = {cell["id"]: one.place for one in page.ranked for cell in one.one.cells}
    drawn = []
    for key, what in CURVES.items():
        found = [
            Curve(statistics.label_cell(cell), places[cell["id"]], cell["status"], points)
            for cell in page.cells
            if (points := select_finite(rows[cell["id"]], key))
        ]
        if found:
            drawn.append(render_both_widths(f"curves-{key}", functools.partial(_draw_curves, found, what)))
    if drawn:
        yield '<h2>Learning curves</h2><p class="soft">A line a cell, its configuration by letter and colour. Dashed: not completed; ✗ where it failed, ■ where it was ended early. '
        yield f"Long curves are drawn as means of neighbouring steps.</p>{_render_legend(page)}{''.join(drawn)}"


def _draw_curves(found: Sequence[Curve], what: str, name: str, width: int) -> str:
    return charts.draw_curves(name, found, width, what)


def _render_legend(page: _Page) -> str:
    shown = [one for one in page.ranked if one.place is not None]
    items = [f"<li>{tables.render_badge(one)} {escape(one.one.name)}</li>" for one in shown]
    others = len(page.ranked) - len(shown)
    more = f'<li><span class="badge">·</span> {others} other{"s" if others > 1 else ""}</li>' if others else ""
    return f'<ul class="legend">{"".join(items)}{more}</ul>'


def _render_map(page: _Page) -> Iterator[str]:
    axes, measured = page.findings.axes, [one for one in page.ranked if one.one.mean is not None]
    if not axes or not measured:
        return
    grid = len(axes) == 2 and 2 * len(page.ranked) >= math.prod(map(len, axes.values()))
    draw = charts.draw_heat_map if grid else charts.draw_parallel_coordinates
    yield f"<h2>{'Heat map' if grid else 'All axes at once'}</h2>"
    told = "The stronger the shade, the lower" if grid else "A line a configuration; on the last axis its mean"
    yield f'<p class="soft">{told} {escape(page.objective)}{"; the lowest is framed" if grid else ""}.</p>'
    yield render_both_widths("map", lambda name, width: draw(name, axes, page.ranked, width, page.objective))


def _render_cost(page: _Page) -> Iterator[str]:
    total = sum(cell.get("cost_seconds") or 0.0 for cell in page.cells)
    yield f'<h2>Cells and their cost</h2><p class="soft">{format_duration(total)} of training and measuring in all cells together. '
    yield "Of cells that were trained together, each is charged its share of the group's time. Parameters: those that were trained.</p>"
    for rows in (page.cells[:SHOWN], page.cells[SHOWN:]):
        if rows:
            table = tables.render_cells(page.folder, rows, page.cells, page.objective)
            yield (
                table
                if rows[0] is page.cells[0]
                else f"<details><summary>{len(rows)} more cells</summary>{table}</details>"
            )


def _render_about(page: _Page) -> Iterator[str]:
    record = next(_iter_records(page), {})
    base = record.get("base") or {}
    versions = ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items())
    known = {
        "Folder": page.summary["folder"],
        "Started": page.summary["started"],
        "Finished": page.summary["finished"] or "not yet",
        "Took": format_duration(page.summary["seconds"]),
        "Base": base.get("name"),
        "Fingerprint of the base": _format_fingerprint(base.get("fingerprint")),
        "Data": ", ".join(f"{key} {value}" for key, value in (record.get("data") or {}).items()),
        "Device": record.get("device"),
        "Platform": record.get("platform"),
        "Git commit": record.get("git_commit"),
        "Versions": versions,
        "Report written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    yield f'<h2>What was run</h2><pre tabindex="0"><code>{escape(page.summary["command"])}</code></pre>{render_definitions(known)}'


def _format_fingerprint(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items() if item) if isinstance(value, dict) else value or ""


def _iter_records(page: _Page) -> Iterator[dict[str, Any]]:
    """Records of completed cells, then of others."""
    for cell in sorted(page.cells, key=lambda one: one["status"] != "completed"):
        try:
            yield atomic_files.read_json(page.folder / cell["folder"] / RECORD)
        except ArtifactError:
            continue
