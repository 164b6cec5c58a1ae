"""What the pages of runs and of sweeps are put together of: HTML as text that needs no script, no network and no other file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import METRICS
from peftrun.io import atomic_files
from peftrun.results.report.line_charts import NARROW, WIDE


def render_document(title: str, body: Iterable[str]) -> Iterator[str]:
    """A whole page with its style."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
    yield from body
    yield "</main></body></html>\n"


def render_table(name: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table that is scrolled where it is too wide. Heads as `class|words`, rows as cells that are written already."""
    parts = [one.rpartition("|") for one in head]
    heads = "".join(
        f'<th scope="col" class="{"n " if css else ""}{css}">{escape(words)}</th>' for css, _, words in parts
    )
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in body)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def render_cell(value: Any, css: str = "") -> str:
    """A cell of a table that holds words."""
    return f'<td class="{css}">{escape(str(value))}</td>'


def render_folded_list(items: list[str], shown: int, what: str, tag: str) -> Iterator[str]:
    """The first items in sight, the others under a line to open."""
    if items:
        yield f"<{tag}>{''.join(items[:shown])}</{tag}>"
    if len(items) > shown:
        yield render_details(f"{len(items) - shown} more {what}", f"<{tag}>{''.join(items[shown:])}</{tag}>")


def render_details(words: str, body: str) -> str:
    """What is opened by a click on the words."""
    return f"<details><summary>{escape(words)}</summary>{body}</details>"


def render_both_widths(name: str, draw: Callable[[str, int], str]) -> str:
    """A chart for wide pages and for narrow ones: only one of them is shown."""
    return "".join(
        f'<div class="scroll {css}" tabindex="0" role="group" aria-label="chart">{draw(f"{name}-{css}", width)}</div>'
        for css, width in (("wide", WIDE), ("narrow", NARROW))
    )


def render_definitions(known: Mapping[str, Any]) -> str:
    """Names and what is known of each; those of which nothing is are left out."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in known.items() if value)
    return f"<dl>{rows}</dl>"


def render_command(text: str) -> str:
    """What may be typed; a click selects it all."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics; none where they are damaged: a page does without this curve."""
    try:
        return [row for row in atomic_files.read_json_lines(run / METRICS) if isinstance(row, dict)]
    except (ValueError, OSError):
        return []
