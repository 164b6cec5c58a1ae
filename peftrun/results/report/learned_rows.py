"""Rows as they are learned, on a page: the text with what is learned marked, its tokens, what else a row says. Light.

Written of `rows.jsonl`, which action=preview and every training leave in their run folders.
"""

from collections.abc import Iterator
from html import escape
from typing import Any

from peftrun.artifacts.run_layout import ROWS
from peftrun.formatting import format_count
from peftrun.io import atomic_files
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_mapping

IGNORED = -100  # label of what is not learned
LONGEST, HEAD, TAIL = 1800, 1200, 400  # characters of a piece that are shown; of a longer one its beginning and its end
PIECES, TOKENS = 120, 1500  # of a text that are shown
TEXTS = {"": "Text", "rejected": "Rejected", "target": "Written"}
SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "␡", ord("\n"): "↵\n",
    **{code: f"\\u{code:04x}" for code in (
        *range(0x80, 0xA0), 0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000)
    )},
}  # fmt: skip


def render_learned_rows(run: RunFacts) -> Iterator[str]:
    """The first rows of a training; nothing where its folder holds none."""
    try:
        rows = atomic_files.read_json_lines(run.folder / ROWS)
    except (ValueError, OSError):
        return
    shown = list(render_articles(rows))
    if shown:
        yield "<h2>What it learns from</h2>"
        yield f'<p class="soft">The first {format_count(len(shown), "training row")}, decoded from the token ids that training got. <mark>Marked</mark> is what is learned.</p>'
        yield from shown


def escape_control_chars(text: str) -> str:
    """With a sign in place of what moves the cursor, turns the direction of writing, or cannot be written."""
    return text.translate(SIGNS)


def render_articles(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One for each row; of what is no such row nothing."""
    yield from (_render_article(row) for row in rows if _is_text(row))


def _is_text(found: Any) -> bool:
    """Whether this is a text with its tokens, and each of its spans lies in it."""
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        return False
    lists = all(isinstance(found.get(key), list) for key in ("input_ids", "spans"))
    return lists and all(isinstance(one, list | tuple) and list(map(type, one)) == [int, int] for one in found["spans"])


def cut_text(text: str, spans: list[Any]) -> Iterator[tuple[str, bool | None]]:
    """(piece, whether it is learned) of a text; None: said in place of what is left out of a long one."""
    pieces_of, end = [], 0
    for begin, stop in spans:
        pieces_of += [(text[end:begin], False), (text[begin:stop], True)]
        end = stop
    found = [(piece, learned) for piece, learned in [*pieces_of, (text[end:], False)] if piece]
    for piece, learned in found[:PIECES]:
        if len(piece) <= LONGEST:
            yield piece, learned
        else:
            yield piece[:HEAD], learned
            yield f" … {len(piece) - HEAD - TAIL:,} characters more … ", None
            yield piece[-TAIL:], learned
    if found[PIECES:]:
        yield f" … {format_count(len(found) - PIECES, 'piece')} more", None


def _render_article(row: dict[str, Any]) -> str:
    facts = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(escape_control_chars(str(value)))}</dd>"
        for key, value in get_mapping(row, "facts").items()
    )
    name = "Chosen" if "rejected" in row else "Read" if "target" in row else ""
    texts = [_render_text(row, name), *(_render_text(row[key], TEXTS[key]) for key in TEXTS if _is_text(row.get(key)))]
    return (
        f'<article class="sample"><h3>{escape(escape_control_chars(str(row.get("source", ""))))} <span class="soft">{escape(str(row.get("split", "")))}</span></h3>'
        f"{''.join(texts)}{f'<dl>{facts}</dl>' if facts else ''}</article>"
    )


def _render_text(found: dict[str, Any], name: str) -> str:
    heading = f"<h4>{name}</h4>" if name else ""
    told = f'<p class="soft">{describe_lengths(found)}</p>'
    body = "".join(_render_piece(*one) for one in cut_text(found["text"], found.get("spans", [])))
    return f'{heading}<div class="learn" dir="auto" tabindex="0" role="group" aria-label="row">{body}</div>{told}{_render_tokens(found)}'


def describe_lengths(found: dict[str, Any]) -> str:
    """How many tokens a text has, and how many of them are learned."""
    ids, learned = found["input_ids"], flag_learned_tokens(found)
    return f"{format_count(len(ids), 'token')}, {sum(learned) or 'none'} learned"


def flag_learned_tokens(found: dict[str, Any]) -> list[bool]:
    """Whether each token is learned."""
    labels, count = found.get("labels"), len(found["input_ids"])
    if not isinstance(labels, list) or len(labels) != count or not found.get("spans"):
        return [False] * count
    return [label != IGNORED for label in labels]


def _render_piece(text: str, learned: bool | None) -> str:
    body = escape(escape_control_chars(text))
    return f'<span class="soft">{body}</span>' if learned is None else f"<mark>{body}</mark>" if learned else body


def _render_tokens(found: dict[str, Any]) -> str:
    """Each token with its id, where the row holds them."""
    tokens = found.get("tokens")
    if not isinstance(tokens, list):
        return ""
    marked = list(zip(tokens, found["input_ids"], flag_learned_tokens(found), strict=False))
    body = "".join(
        f'<{"mark" if learned else "span"} class="token">{escape(escape_control_chars(str(text)))}<small>{escape(str(number))}</small></{"mark" if learned else "span"}>'
        for text, number, learned in marked[:TOKENS]
    )
    more = f' <span class="soft">… {len(marked) - TOKENS:,} more</span>' if marked[TOKENS:] else ""
    return html.render_details(
        f"{len(marked)} tokens with their ids", f'<div class="learn" dir="auto">{body}{more}</div>'
    )
