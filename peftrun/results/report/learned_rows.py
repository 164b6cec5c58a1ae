"""Training rows as HTML: text with the learned part marked, its tokens, further fields of the row. Light.

Reads `rows.jsonl`, which action=preview and every training write to their run folder.
"""

from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.artifacts.run_layout import ROWS
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_mapping

IGNORED = -100  # label of tokens without loss, as in torch.nn.CrossEntropyLoss
LONGEST, HEAD, TAIL = 1800, 1200, 400  # characters: a longer piece is shown by its first 1200 and last 400
PIECES, TOKENS = 120, 1500  # shown per text
TEXTS = {"": "Text", "rejected": "Rejected", "target": "Written"}
# Code point → visible sign, for controls, bidirectional marks, zero-width characters and surrogates.
SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "␡", ord("\n"): "↵\n",
    **{code: f"\\u{code:04x}" for code in (
        *range(0x80, 0xA0), 0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000)
    )},
}  # fmt: skip


def render_learned_rows(run: RunFacts) -> Iterator[str]:
    """The first training rows; nothing if the run folder has none."""
    try:
        rows = atomic_files.read_json_lines(run.folder / ROWS)
    except (ValueError, OSError):
        return
    articles = list(render_articles(rows))
    if articles:
        yield "<h2>Training rows</h2>"
        yield f'<p class="soft">The first {format_count(len(articles), "training row")}, decoded from the token ids that training got. What is learned is <mark>marked</mark>.</p>'
        yield from articles


def escape_control_chars(text: str) -> str:
    """Text with visible signs for characters that move the cursor, change the writing direction, or cannot be encoded."""
    return text.translate(SIGNS)


def render_articles(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One article per row; malformed rows are skipped."""
    for row in filter(_is_text, rows):
        facts = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(escape_control_chars(str(value)))}</dd>"
            for key, value in get_mapping(row, "facts").items()
        )
        name = "Chosen" if "rejected" in row else "Read" if "target" in row else ""
        others = [_render_text(row[key], TEXTS[key]) for key in TEXTS if _is_text(row.get(key))]
        yield (
            f'<article class="sample"><h3>{escape(escape_control_chars(str(row.get("source", ""))))} <span class="soft">{escape(str(row.get("split", "")))}</span></h3>'
            f"{_render_text(row, name)}{''.join(others)}{f'<dl>{facts}</dl>' if facts else ''}</article>"
        )


def _is_text(value: Any) -> bool:
    """Whether a value is a text with token ids and well-formed spans."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return False
    has_lists = all(isinstance(value.get(key), list) for key in ("input_ids", "spans"))
    return has_lists and all(
        isinstance(span, list | tuple) and list(map(type, span)) == [int, int] for span in value["spans"]
    )


def cut_text(text: str, spans: list[Any]) -> Iterator[tuple[str, bool | None]]:
    """(piece, whether it is learned) of a text; None for a note in place of what is left out of a long one."""
    all_pieces, end = [], 0
    # Spans are learned stretches, sorted, as (begin, stop) in characters.
    for begin, stop in spans:
        all_pieces += [(text[end:begin], False), (text[begin:stop], True)]
        end = stop
    pieces = [(piece, learned) for piece, learned in [*all_pieces, (text[end:], False)] if piece]
    for piece, learned in pieces[:PIECES]:
        if len(piece) <= LONGEST:
            yield piece, learned
        else:
            yield piece[:HEAD], learned
            yield f" … {len(piece) - HEAD - TAIL:,} characters more … ", None
            yield piece[-TAIL:], learned
    if pieces[PIECES:]:
        yield f" … {format_count(len(pieces) - PIECES, 'piece')} more", None


def _render_text(row_text: dict[str, Any], name: str) -> str:
    heading = f"<h4>{name}</h4>" if name else ""
    lengths = f'<p class="soft">{describe_lengths(row_text)}</p>'
    body = ""
    for piece, learned in cut_text(row_text["text"], row_text.get("spans", [])):
        text = escape(escape_control_chars(piece))
        body += f'<span class="soft">{text}</span>' if learned is None else f"<mark>{text}</mark>" if learned else text
    shown = f'{heading}<div class="learn" dir="auto" tabindex="0" role="group" aria-label="row">{body}</div>{lengths}'
    tokens = row_text.get("tokens")
    if not isinstance(tokens, list):
        return shown
    flagged = list(zip(tokens, row_text["input_ids"], flag_learned_tokens(row_text), strict=False))
    listed = "".join(
        f'<{"mark" if learned else "span"} class="token">{escape(escape_control_chars(str(text)))}<small>{escape(str(number))}</small></{"mark" if learned else "span"}>'
        for text, number, learned in flagged[:TOKENS]
    )
    omitted = f' <span class="soft">… {len(flagged) - TOKENS:,} more</span>' if flagged[TOKENS:] else ""
    return shown + html.render_details(
        f"{len(flagged)} tokens with their ids", f'<div class="learn" dir="auto">{listed}{omitted}</div>'
    )


def describe_lengths(row_text: dict[str, Any]) -> str:
    """Number of tokens of a text, and how many of them are learned."""
    ids, learned = row_text["input_ids"], flag_learned_tokens(row_text)
    return f"{format_count(len(ids), 'token')}, {sum(learned) or 'none'} learned"


def flag_learned_tokens(row_text: dict[str, Any]) -> list[bool]:
    """For each token whether it is learned."""
    labels, count = row_text.get("labels"), len(row_text["input_ids"])
    if not isinstance(labels, list) or len(labels) != count or not row_text.get("spans"):
        return [False] * count
    return [label != IGNORED for label in labels]
