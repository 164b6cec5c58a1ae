"""The tables of a sweep's report."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from peftrun.artifacts.run_layout import REPORT_PAGE
from peftrun.formatting import format_duration, format_figure, format_value, shorten_keys
from peftrun.results.report.html import render_table
from peftrun.sweep.report import charts
from peftrun.sweep.report.charts import LETTERS, RankedConfiguration
from peftrun.sweep.statistics import Findings

COSTS = {"cost_seconds": "time", "tokens": "tokens", "trainable_parameters": "parameters"}


def render_badge(ranked: RankedConfiguration) -> str:
    """The letter of a configuration on its color; empty if it has none."""
    return "" if ranked.rank is None else f'<span class="badge c{ranked.rank}">{LETTERS[ranked.rank]}</span>'


def render_configurations(rows: Sequence[RankedConfiguration], findings: Findings, objective: str) -> str:
    """A row per configuration: its values, mean, interval, and a drawing of its seeds."""
    scale = charts.build_seed_scale(findings.configurations)
    head = [
        "",
        *shorten_keys(list(findings.axes)),
        f"n|{objective}, mean",
        "n|± 95 %",
        "n|deviation",
        "n|cells",
        "seeds",
    ]
    table = []
    for ranked in rows:
        configuration = ranked.configuration
        interval, scores, cells = configuration.interval, configuration.scores, configuration.cells
        half_width = (interval[1] - interval[0]) / 2 if interval else None
        total = f" of {len(cells)}" if len(scores) < len(cells) else ""
        drawing = charts.draw_seeds(f"seeds-{cells[0]['id']}", ranked, scale, objective) if scores else ""
        table.append(
            [
                f"<td>{render_badge(ranked)}</td>",
                *map(_render_words, configuration.values.values()),
                *map(_render_number, (configuration.mean, half_width, configuration.deviation)),
                f'<td class="n">{len(scores)}{total}</td>',
                f'<td class="seeds">{drawing}</td>',
            ]
        )
    return render_table("Configurations", head, table)


def render_cells(folder: Path, rows: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]], objective: str) -> str:
    """A row per cell: its values, status, objective and cost, with a bar relative to the largest. Its number links to its own report.

    Args: rows: the cells in this table. every: all cells of the sweep, for the largest costs.
    """
    axes = shorten_keys(list(every[0]["values"]))
    largest = {key: max((cell.get(key) or 0 for cell in every), default=0) for key in COSTS}
    head = ["n|cell", *axes, "status", f"n|{objective}", *(f"cost|{name}" for name in COSTS.values())]
    table = []
    for cell in rows:
        numbers = escape(", ".join(map(str, cell["numbers"])))
        page = f"{cell['folder']}/{REPORT_PAGE}"
        if (folder / page).is_file():
            numbers = f'<a href="{escape(quote(page))}">{numbers}</a>'
        costs = []
        for key, most in largest.items():
            cost = cell.get(key)
            text = "–" if cost is None else format_duration(cost) if key == "cost_seconds" else f"{cost:,.0f}"
            percent = 100 * (cost or 0) / most if most else 0
            costs.append(f'<td class="n cost" style="--part:{percent:.0f}%">{text}</td>')
        values = map(_render_words, cell["values"].values())
        status, objective_cell = f"<td>{escape(cell['status'])}</td>", _render_number(cell["objective"])
        table.append([f'<td class="n">{numbers}</td>', *values, status, objective_cell, *costs])
    return render_table("Cells", head, table)


def _render_words(value: Any) -> str:
    return f'<td class="words">{escape(format_value(value))}</td>'


def _render_number(value: float | None) -> str:
    return f'<td class="n">{"–" if value is None else format_figure(value)}</td>'
