"""preview.html: rows as they will be learned, and what all of them are together; needs no script, no network and no other file. Light."""

from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.formatting import format_count
from peftrun.results.report import html, learned_rows


def render_preview(title: str, lead: str, rows: list[dict[str, Any]], counts: dict[str, Any], notes: list[str]) -> str:
    """The page. `counts`: see `statistics.counted`; `notes`: what is to be known of all rows."""
    return "".join(
        html.render_document(f"{title}: rows as they will be learned", _render_body(title, lead, rows, counts, notes))
    )


def _render_body(
    title: str, lead: str, rows: list[dict[str, Any]], counts: dict[str, Any], notes: list[str]
) -> Iterator[str]:
    yield f'<header><ul class="chips"><li>preview</li></ul><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
    yield f'<ul class="tiles">{"".join(_render_tiles(counts))}</ul>'
    yield "<h2>Rows as they will be learned</h2>"
    yield '<p class="soft">The text is decoded from the very token ids that training gets. <mark>Marked</mark> is what is learned.</p>'
    yield "".join(f"<p>{escape(note)}</p>" for note in notes)
    yield from learned_rows.render_articles(rows)
    yield "<h2>How long they are</h2>"
    yield _render_histogram(counts["histogram"])
    yield html.render_table(
        "Splits",
        ["", "n|rows", "n|tokens", "n|learned", "n|shortest", "n|median", "n|longest"],
        _build_split_rows(counts),
    )
    yield "<h2>Where they come from</h2>"
    yield from _render_sources(counts["sources"])


def _render_tiles(counts: dict[str, Any]) -> Iterator[str]:
    training = counts["splits"]["training"]
    yield _render_tile(
        "training rows",
        f"{training['rows']:,}",
        " · ".join(f"{one['rows']:,} {name}" for name, one in counts["splits"].items() if name != "training"),
    )
    yield _render_tile(
        "tokens", f"{training['tokens']:,}", f"{training['shortest']:,} to {training['longest']:,} a row"
    )
    if training["learned_tokens"]:
        yield _render_tile("learned", f"{training['share_learned']:.1%}", f"{training['learned_tokens']:,} tokens")
    yield _render_tile(
        "left out", f"{sum(sum(one['left_out'].values()) for one in counts['sources'].values()):,}", "rows"
    )


def _render_tile(name: str, value: str, since: str) -> str:
    return f'<li><div class="name">{name}</div><div class="value">{value}</div><div class="since">{escape(since)}</div></li>'


def _render_histogram(bins: list[Any]) -> str:
    most = max(count for *_, count in bins)
    rows = [
        [
            f'<th scope="row" class="n">{format_bin(low, high)}</th>',
            f'<td class="n cost length" style="--part: {count / most:.1%}">{count:,}</td>',
        ]
        for low, high, count in bins
    ]
    return html.render_table("Lengths", ["n|tokens", "cost|training rows"], rows)


def format_bin(low: int, high: int) -> str:
    """A bin of a histogram in words."""
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def _build_split_rows(counts: dict[str, Any]) -> list[list[str]]:
    keys = ("rows", "tokens", "learned_tokens", "shortest", "median", "longest")
    return [
        [f'<th scope="row" class="line">{name}</th>', *(html.render_cell(f"{one[key]:,}", "n") for key in keys)]
        for name, one in counts["splits"].items()
    ]


def _render_sources(sources: dict[str, Any]) -> Iterator[str]:
    names = [name for name in next(iter(sources.values())) if name not in ("rows", "cut", "left_out")]
    heads = ["source", "n|rows", *(f"n|{name}" for name in names), "n|left out"]
    yield html.render_table("Sources", heads, [_build_source_row(name, one, names) for name, one in sources.items()])
    for name, one in sources.items():
        reasons = [
            f"<li>{format_count(f'{number:,}', 'row') if number != 1 else '1 row'}: {escape(why)}</li>"
            for why, number in one["left_out"].items()
        ]
        reasons += [f"<li>{one['cut']:,} cut: what lies beyond is not read</li>"] if one["cut"] else []
        if reasons:
            yield f"<h3>Left out of {escape(learned_rows.escape_control_chars(name))}</h3><ul>{''.join(reasons)}</ul>"


def _build_source_row(name: str, one: dict[str, Any], names: list[str]) -> list[str]:
    numbers = [one["rows"], *(one[key] for key in names), sum(one["left_out"].values())]
    return [
        f'<th scope="row">{escape(learned_rows.escape_control_chars(name))}</th>',
        *(html.render_cell(f"{number:,}", "n") for number in numbers),
    ]
