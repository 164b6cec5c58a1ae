"""What a model answered before and after training: samples, a confusion matrix, entities of each type. Light."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from peftrun.formatting import format_count, format_number, is_number
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_list, get_mapping

WHEN = {"before": "before training", "after": "after training"}
SHADES, MATRIX = 7, 30  # of a cell; labels beyond which only the table is shown
Counts = list[list[int]]


def render_generations(run: RunFacts) -> Iterator[str]:
    """Whatever the record holds of it; nothing where it holds nothing."""
    yield from _render_samples(get_mapping(run.record, "samples"))
    yield from _render_confusion(get_mapping(run.record, "confusion"))
    yield from _render_entities(get_mapping(run.record, "entities"))


def _render_samples(found: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in get_list(found, "rows") if isinstance(row, dict)]
    if not rows:
        return
    yield "<h2>What it answers</h2>"
    yield f'<p class="soft">{format_count(len(rows), "held-out row")}, evenly apart, answered greedily in at most {escape(str(found.get("max_new_tokens")))} tokens; nothing was learned from them. '
    yield "✓ marks an answer that is exactly the expected one.</p>"
    yield from (_render_sample(row, number) for number, row in enumerate(rows, 1))


def _render_sample(row: dict[str, Any], number: int) -> str:
    expected = row.get("expected")
    given = [("Expected", expected, False)] if expected is not None else []
    given += [
        (words.capitalize(), row[when], row[when] == expected)
        for when, words in WHEN.items()
        if row.get(when) is not None
    ]
    parts = "".join(_render_answer(*one) for one in given)
    where = f' <span class="soft">{escape(str(row["where"]))}</span>' if row.get("where") else ""
    return (
        f'<article class="sample"><h3>Sample {number}{where}</h3><div class="prompt" tabindex="0" role="group" aria-label="prompt">{escape(str(row.get("prompt", "")))}</div>'
        f'<div class="said">{parts}</div></article>'
    )


def _render_answer(label: str, words: Any, right: bool) -> str:
    mark = ' <span class="right">✓ as expected</span>' if right else ""
    body = escape(str(words)) if str(words) else '<span class="soft">(nothing)</span>'
    return f'<div class="{"right" if right else ""}"><h4>{label}{mark}</h4><div class="words">{body}</div></div>'


def _render_confusion(found: dict[str, Any]) -> Iterator[str]:
    drawn = {when: one for when in WHEN if (one := _parse_matrix(found.get(when)))}
    if not drawn:
        return
    labels = next(iter(drawn.values()))[0]
    yield "<h2>Which labels it mixes up</h2>"
    yield '<p class="soft">Held-out rows: a line for each true label, a column for each answer. The shade is the share of its line.</p>'
    if len(labels) <= MATRIX:
        parts = (_render_matrix(WHEN[when], labels, counts) for when, (_, counts) in drawn.items())
        yield f'<div class="charts">{"".join(parts)}</div>'
    head = ["label", "n|rows", *(f"n|{name}, {when}" for name in ("precision", "recall", "F1") for when in drawn)]
    each = [{when: _count_label(counts, place) for when, (_, counts) in drawn.items()} for place in range(len(labels))]
    yield html.render_table(
        "Labels", head, [_render_scores(name, scores) for name, scores in zip(labels, each, strict=True)]
    )


def _parse_matrix(found: Any) -> tuple[list[str], Counts] | None:
    """Labels and counts; None where they are not there or do not fit together."""
    labels, counts = (found.get("labels"), found.get("counts")) if isinstance(found, dict) else (None, None)
    if not labels or not isinstance(counts, list) or len(counts) != len(labels):
        return None
    fits = all(isinstance(row, list) and len(row) == len(labels) and all(map(is_number, row)) for row in counts)
    return ([str(one) for one in labels], counts) if fits else None


def _render_matrix(title: str, labels: Sequence[str], counts: Counts) -> str:
    heads = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in labels)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_render_share(count, sum(row), place == column) for column, count in enumerate(row))}</tr>'
        for place, (name, row) in enumerate(zip(labels, counts, strict=True))
    )
    right, every = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="confusion {title}"><table class="matrix"><caption>{title.capitalize()}: {right} of {every} right</caption>'
        f'<thead><tr><th scope="col">true \\ answered</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _render_share(count: int, every: int, right: bool) -> str:
    part_of = count / every if every else 0.0
    shade = SHADES - 1 - min(SHADES - 1, int(part_of * SHADES))
    return f'<td class="h{shade}{" best" if right else ""}"><b>{count}</b> <span>{part_of:.0%}</span></td>'


def _count_label(counts: Counts, place: int) -> dict[str, int]:
    return {
        "true": sum(counts[place]), "found": sum(row[place] for row in counts), "right": counts[place][place],
    }  # fmt: skip


def _render_entities(found: dict[str, Any]) -> Iterator[str]:
    drawn = {when: one for when in WHEN if isinstance(one := found.get(when), dict) and one}
    if not drawn:
        return
    yield "<h2>Entities</h2>"
    yield '<p class="soft">Whole entities of held-out rows: one is right if its first word, its last and its type are.</p>'
    head = ["type", "n|entities", *(f"n|{name}, {when}" for name in ("precision", "recall", "F1") for when in drawn)]
    kinds = list(dict.fromkeys(kind for one in drawn.values() for kind in one))
    rows = [_render_scores(kind, {when: get_mapping(one, kind) for when, one in drawn.items()}) for kind in kinds]
    yield html.render_table("Entities", head, rows)


def _render_scores(name: str, each: dict[str, dict[str, int]]) -> list[str]:
    """A line of a table: how many there are, then precision, recall and F1, each before and after."""
    scores = {when: compute_scores(one) for when, one in each.items()}
    last = list(each.values())[-1]
    cells = [html.render_cell(format_number(scores[when][kind]), "n") for kind in range(3) for when in each]
    return [f'<th scope="row">{escape(name)}</th>', html.render_cell(last.get("true", 0), "n"), *cells]


def compute_scores(counts: dict[str, int]) -> tuple[float, float, float]:
    """Precision, recall and F1 of how many there are (`true`), were answered (`found`), and are `right`; 0 where there is nothing."""
    true, found, right = (counts.get(name, 0) for name in ("true", "found", "right"))
    return (
        right / found if found else 0.0,
        right / true if true else 0.0,
        2 * right / (found + true) if found + true else 0.0,
    )
