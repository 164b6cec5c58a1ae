"""preview.html: training rows as they will be learned, and statistics of all rows; needs no script, network or other file. Light."""

from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.formatting import format_count
from peftrun.results.report import html, learned_rows

SPLIT_KEYS = ("rows", "tokens", "learned_tokens", "shortest", "median", "longest")  # of a split's statistics


def render_preview(title: str, lead: str, rows: list[dict[str, Any]], counts: dict[str, Any], notes: list[str]) -> str:
    """The page. `counts`: from `statistics`; `notes`: remarks on all rows."""
    return "".join(
        html.render_document(f"{title}: rows as they will be learned", _render_body(title, lead, rows, counts, notes))
    )


def _render_body(
    title: str, lead: str, rows: list[dict[str, Any]], counts: dict[str, Any], notes: list[str]
) -> Iterator[str]:
    yield f'<header><ul class="chips"><li>preview</li></ul><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
    yield f'<ul class="tiles">{"".join(_render_tiles(counts))}</ul>'
    yield "<h2>Rows as they will be learned</h2>"
    yield '<p class="soft">The text is decoded from the token ids that training gets. What is learned is <mark>marked</mark>.</p>'
    yield "".join(f"<p>{escape(note)}</p>" for note in notes)
    yield from learned_rows.render_articles(rows)
    yield "<h2>How long they are</h2>"
    highest = max(count for *_, count in counts["histogram"])  # its bar is as wide as the cell
    bins = [
        [
            f'<th scope="row" class="n">{format_bin(low, high)}</th>',
            f'<td class="n cost length" style="--part: {count / highest:.1%}">{count:,}</td>',
        ]
        for low, high, count in counts["histogram"]
    ]
    yield html.render_table("Lengths", ["n|tokens", "cost|training rows"], bins)
    yield html.render_table(
        "Splits",
        ["", "n|rows", "n|tokens", "n|learned", "n|shortest", "n|median", "n|longest"],
        [
            [
                f'<th scope="row" class="line">{name}</th>',
                *(html.render_cell(f"{split[key]:,}", "n") for key in SPLIT_KEYS),
            ]
            for name, split in counts["splits"].items()
        ],
    )
    yield "<h2>Where they come from</h2>"
    yield from _render_sources(counts["sources"])


def _render_tiles(counts: dict[str, Any]) -> Iterator[str]:
    training = counts["splits"]["training"]
    yield _render_tile(
        "training rows",
        f"{training['rows']:,}",
        " · ".join(f"{split['rows']:,} {name}" for name, split in counts["splits"].items() if name != "training"),
    )
    yield _render_tile(
        "tokens", f"{training['tokens']:,}", f"{training['shortest']:,} to {training['longest']:,} a row"
    )
    if training["learned_tokens"]:
        yield _render_tile("learned", f"{training['share_learned']:.1%}", f"{training['learned_tokens']:,} tokens")
    yield _render_tile(
        "left out", f"{sum(sum(source['left_out'].values()) for source in counts['sources'].values()):,}", "rows"
    )


def _render_tile(name: str, value: str, note: str) -> str:
    return f'<li><div class="name">{name}</div><div class="value">{value}</div><div class="since">{escape(note)}</div></li>'


def format_bin(low: int, high: int) -> str:
    """A bin of a histogram, in tokens: `8` or `9 – 16`."""
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def _render_sources(sources: dict[str, Any]) -> Iterator[str]:
    names = [name for name in next(iter(sources.values())) if name not in ("rows", "cut", "left_out")]
    heads = ["source", "n|rows", *(f"n|{name}" for name in names), "n|left out"]
    rows = []
    for name, source in sources.items():
        numbers = [source["rows"], *(source[key] for key in names), sum(source["left_out"].values())]
        label = escape(learned_rows.escape_control_chars(name))
        rows.append([f'<th scope="row">{label}</th>', *(html.render_cell(f"{number:,}", "n") for number in numbers)])
    yield html.render_table("Sources", heads, rows)
    for name, source in sources.items():
        reasons = [
            f"<li>{format_count(f'{number:,}', 'row') if number != 1 else '1 row'}: {escape(why)}</li>"
            for why, number in source["left_out"].items()
        ]
        reasons += [f"<li>{source['cut']:,} truncated: the rest is not read</li>"] if source["cut"] else []
        if reasons:
            yield f"<h3>Left out of {escape(learned_rows.escape_control_chars(name))}</h3><ul>{''.join(reasons)}</ul>"
