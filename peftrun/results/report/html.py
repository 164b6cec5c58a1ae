"""HTML building blocks of the pages of runs and sweeps: self-contained text without scripts or external files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import METRICS
from peftrun.io import atomic_files
from peftrun.results.report.line_charts import NARROW, WIDE


def render_document(title: str, body: Iterable[str]) -> Iterator[str]:
    """A complete page with its style sheet inline."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
    yield from body
    yield "</main></body></html>\n"


def render_table(name: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table that scrolls if it is too wide. Heads as `class|text`; cells as ready HTML."""
    split_heads = [text.rpartition("|") for text in head]
    heads = "".join(
        f'<th scope="col" class="{"n " if css else ""}{css}">{escape(text)}</th>' for css, _, text in split_heads
    )
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in body)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def render_cell(value: Any, css: str = "") -> str:
    """A table cell with a value as text."""
    return f'<td class="{css}">{escape(str(value))}</td>'


def render_folded_list(items: list[str], shown: int, noun: str, tag: str) -> Iterator[str]:
    """The first items in sight, the others folded. `noun`: plural noun of the items."""
    if items:
        yield f"<{tag}>{''.join(items[:shown])}</{tag}>"
    if len(items) > shown:
        yield render_details(f"{len(items) - shown} more {noun}", f"<{tag}>{''.join(items[shown:])}</{tag}>")


def render_details(summary: str, body: str) -> str:
    """A folded section that a click on its summary opens."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def render_both_widths(name: str, draw: Callable[[str, int], str]) -> str:
    """A chart for wide and one for narrow pages; the style sheet shows one of them."""
    return "".join(
        f'<div class="scroll {css}" tabindex="0" role="group" aria-label="chart">{draw(f"{name}-{css}", width)}</div>'
        for css, width in (("wide", WIDE), ("narrow", NARROW))
    )


def render_definitions(values: Mapping[str, Any]) -> str:
    """A definition list; entries without a value are left out."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items() if value)
    return f"<dl>{rows}</dl>"


def render_command(text: str) -> str:
    """A command that a click selects as a whole."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; empty if it is damaged, since a page can do without its curves."""
    try:
        return [row for row in atomic_files.read_json_lines(run / METRICS) if isinstance(row, dict)]
    except (ValueError, OSError):
        return []
