"""The tables of a sweep's report."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from peftrun.sweep import charts
from peftrun.sweep.charts import LETTERS, Ranked
from peftrun.sweep.drawing import Scale
from peftrun.sweep.statistics import Findings, figure, show

COSTS = {"cost_seconds": "time", "tokens": "tokens", "trainable_parameters": "parameters"}


def badge(found: Ranked) -> str:
    """The letter of a configuration on its colour; nothing where it has none."""
    return "" if found.place is None else f'<span class="badge c{found.place}">{LETTERS[found.place]}</span>'


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def short(keys: Sequence[str]) -> list[str]:
    """The last part of each key; whole where that is not enough to tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def configurations(rows: Sequence[Ranked], findings: Findings, objective: str) -> str:
    """A row a configuration: its values, mean and interval, and where its seeds lie."""
    reach = charts.reach(findings.configurations)
    head = ["", *short(list(findings.axes)), f"n|{objective}, mean", "n|± 95 %", "n|deviation", "n|cells", "seeds"]
    return _table("Configurations", head, [_configuration(found, reach, objective) for found in rows])


def _configuration(found: Ranked, reach: Scale, objective: str) -> list[str]:
    one = found.one
    half = (one.interval[1] - one.interval[0]) / 2 if one.interval else None
    whole = f" of {len(one.cells)}" if len(one.scores) < len(one.cells) else ""
    drawing = charts.seeds(f"seeds-{one.cells[0]['id']}", found, reach, objective) if one.scores else ""
    return [
        f"<td>{badge(found)}</td>",
        *(f'<td class="words">{escape(show(value))}</td>' for value in one.values.values()),
        *(_number(value, figure) for value in (one.mean, half, one.deviation)),
        f'<td class="n">{len(one.scores)}{whole}</td>',
        f'<td class="seeds">{drawing}</td>',
    ]


def cells(rows: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]], objective: str) -> str:
    """A row a cell: its values, what became of it, what it cost; a bar shows its part of the dearest's."""
    axes = short(list(every[0]["values"]))
    dearest = {key: max((cell.get(key) or 0 for cell in every), default=0) for key in COSTS}
    head = ["n|cell", *axes, "status", f"n|{objective}", *(f"cost|{name}" for name in COSTS.values())]
    return _table("Cells", head, [_cell(one, dearest) for one in rows])


def _cell(cell: dict[str, Any], dearest: dict[str, float]) -> list[str]:
    return [
        f'<td class="n">{escape(", ".join(map(str, cell["numbers"])))}</td>',
        *(f'<td class="words">{escape(show(value))}</td>' for value in cell["values"].values()),
        f"<td>{escape(cell['status'])}</td>",
        _number(cell["objective"], figure),
        *(_bar(cell.get(key), most, duration if key == "cost_seconds" else _whole) for key, most in dearest.items()),
    ]


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float | None, words: Callable[[float], str]) -> str:
    return f'<td class="n">{"–" if value is None else words(value)}</td>'


def _bar(value: float | None, most: float, words: Callable[[float], str]) -> str:
    part = 100 * (value or 0) / most if most else 0
    return f'<td class="n cost" style="--part:{part:.0f}%">{"–" if value is None else words(value)}</td>'


def _table(name: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Heads as `class|words`, rows as cells that are written already."""
    parts = [one.rpartition("|") for one in head]
    heads = "".join(
        f'<th scope="col" class="{"n " if css else ""}{css}">{escape(words)}</th>' for css, _, words in parts
    )
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in body)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
