"""The tables of a sweep's report."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from peftrun.artifacts.run_layout import REPORT_PAGE
from peftrun.formatting import format_duration, format_figure, shorten_keys
from peftrun.results.report.html import render_table
from peftrun.results.report.svg import Scale
from peftrun.sweep.report import charts
from peftrun.sweep.report.charts import LETTERS, RankedConfiguration
from peftrun.sweep.statistics import Findings, format_override_value

COSTS = {"cost_seconds": "time", "tokens": "tokens", "trainable_parameters": "parameters"}


def render_badge(found: RankedConfiguration) -> str:
    """The letter of a configuration on its colour; nothing where it has none."""
    return "" if found.place is None else f'<span class="badge c{found.place}">{LETTERS[found.place]}</span>'


def render_configurations(rows: Sequence[RankedConfiguration], findings: Findings, objective: str) -> str:
    """A row a configuration: its values, mean and interval, and where its seeds lie."""
    reach = charts.build_seed_scale(findings.configurations)
    head = [
        "",
        *shorten_keys(list(findings.axes)),
        f"n|{objective}, mean",
        "n|± 95 %",
        "n|deviation",
        "n|cells",
        "seeds",
    ]
    return render_table("Configurations", head, [_render_configuration(found, reach, objective) for found in rows])


def _render_configuration(found: RankedConfiguration, reach: Scale, objective: str) -> list[str]:
    one = found.one
    half = (one.interval[1] - one.interval[0]) / 2 if one.interval else None
    whole = f" of {len(one.cells)}" if len(one.scores) < len(one.cells) else ""
    drawing = charts.draw_seeds(f"seeds-{one.cells[0]['id']}", found, reach, objective) if one.scores else ""
    return [
        f"<td>{render_badge(found)}</td>",
        *(f'<td class="words">{escape(format_override_value(value))}</td>' for value in one.values.values()),
        *(_render_number(value, format_figure) for value in (one.mean, half, one.deviation)),
        f'<td class="n">{len(one.scores)}{whole}</td>',
        f'<td class="seeds">{drawing}</td>',
    ]


def render_cells(folder: Path, rows: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]], objective: str) -> str:
    """A row a cell: its values, what became of it, what it cost; a bar shows its part of the dearest's. Its number leads to its own report."""
    axes = shorten_keys(list(every[0]["values"]))
    dearest = {key: max((cell.get(key) or 0 for cell in every), default=0) for key in COSTS}
    head = ["n|cell", *axes, "status", f"n|{objective}", *(f"cost|{name}" for name in COSTS.values())]
    return render_table("Cells", head, [_render_cell(folder, one, dearest) for one in rows])


def _render_cell(folder: Path, cell: dict[str, Any], dearest: dict[str, float]) -> list[str]:
    return [
        f'<td class="n">{_render_link(folder, cell)}</td>',
        *(f'<td class="words">{escape(format_override_value(value))}</td>' for value in cell["values"].values()),
        f"<td>{escape(cell['status'])}</td>",
        _render_number(cell["objective"], format_figure),
        *(
            _render_bar(cell.get(key), most, format_duration if key == "cost_seconds" else _format_whole)
            for key, most in dearest.items()
        ),
    ]


def _format_whole(value: float) -> str:
    return f"{value:,.0f}"


def _render_number(value: float | None, words: Callable[[float], str]) -> str:
    return f'<td class="n">{"–" if value is None else words(value)}</td>'


def _render_bar(value: float | None, most: float, words: Callable[[float], str]) -> str:
    part = 100 * (value or 0) / most if most else 0
    return f'<td class="n cost" style="--part:{part:.0f}%">{"–" if value is None else words(value)}</td>'


def _render_link(folder: Path, cell: dict[str, Any]) -> str:
    numbers = escape(", ".join(map(str, cell["numbers"])))
    page = f"{cell['folder']}/{REPORT_PAGE}"
    return f'<a href="{escape(quote(page))}">{numbers}</a>' if (folder / page).is_file() else numbers
