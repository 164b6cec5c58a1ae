"""Outputs before and after training: sample answers, a confusion matrix, entities per type. Light."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from peftrun.formatting import format_count, format_number, is_number
from peftrun.results.report import html
from peftrun.results.report.run_facts import RunFacts, get_list, get_mapping

WHEN = {"before": "before training", "after": "after training"}
SHADES, MAX_MATRIX_LABELS = 7, 30  # classes h0 … h6 of report.css; with more labels only the table is shown
Counts = list[list[int]]  # (labels, labels): rows are true labels, columns answers


def render_generations(run: RunFacts) -> Iterator[str]:
    """Whatever the record holds of these; possibly nothing."""
    yield from _render_samples(get_mapping(run.record, "samples"))
    yield from _render_confusion(get_mapping(run.record, "confusion"))
    yield from _render_entities(get_mapping(run.record, "entities"))


def _render_samples(samples: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in get_list(samples, "rows") if isinstance(row, dict)]
    if not rows:
        return
    yield "<h2>Sample answers</h2>"
    yield f'<p class="soft">{format_count(len(rows), "evaluation row")}, evenly spaced, answered greedily in at most {escape(str(samples.get("max_new_tokens")))} tokens; none was trained on. '
    yield "✓ marks an answer that equals the expected one.</p>"
    for number, row in enumerate(rows, 1):
        expected = row.get("expected")
        answers = _render_answer("Expected", expected, False) if expected is not None else ""
        for when, label in WHEN.items():
            if row.get(when) is not None:
                answers += _render_answer(label.capitalize(), row[when], row[when] == expected)
        where = f' <span class="soft">{escape(str(row["where"]))}</span>' if row.get("where") else ""
        yield (
            f'<article class="sample"><h3>Sample {number}{where}</h3><div class="prompt" tabindex="0" role="group" aria-label="prompt">{escape(str(row.get("prompt", "")))}</div>'
            f'<div class="answers">{answers}</div></article>'
        )


def _render_answer(label: str, text: Any, is_expected: bool) -> str:
    mark = ' <span class="right">✓ as expected</span>' if is_expected else ""
    body = escape(str(text)) if str(text) else '<span class="soft">(nothing)</span>'
    return f'<div class="{"right" if is_expected else ""}"><h4>{label}{mark}</h4><div class="words">{body}</div></div>'


def _render_confusion(confusion: dict[str, Any]) -> Iterator[str]:
    matrices = {when: matrix for when in WHEN if (matrix := _parse_matrix(confusion.get(when)))}
    if not matrices:
        return
    labels = next(iter(matrices.values()))[0]
    yield "<h2>Confusion matrix</h2>"
    yield '<p class="soft">Evaluation rows: a row per true label, a column per answer. The shade is the share of the row.</p>'
    if len(labels) <= MAX_MATRIX_LABELS:
        tables = (_render_matrix(WHEN[when], labels, counts) for when, (_, counts) in matrices.items())
        yield f'<div class="charts">{"".join(tables)}</div>'
    head = ["label", "n|rows", *(f"n|{name}, {when}" for name in ("precision", "recall", "F1") for when in matrices)]
    counts_by_label = [
        {
            when: {"true": sum(counts[i]), "found": sum(row[i] for row in counts), "right": counts[i][i]}
            for when, (_, counts) in matrices.items()
        }
        for i in range(len(labels))
    ]
    yield html.render_table(
        "Labels", head, [_render_scores(name, scores) for name, scores in zip(labels, counts_by_label, strict=True)]
    )


def _parse_matrix(recorded: Any) -> tuple[list[str], Counts] | None:
    """Labels and counts; None if they are missing or their shapes do not match."""
    labels, counts = (recorded.get("labels"), recorded.get("counts")) if isinstance(recorded, dict) else (None, None)
    if not labels or not isinstance(counts, list) or len(counts) != len(labels):
        return None
    is_square = all(isinstance(row, list) and len(row) == len(labels) and all(map(is_number, row)) for row in counts)
    return ([str(label) for label in labels], counts) if is_square else None


def _render_matrix(title: str, labels: Sequence[str], counts: Counts) -> str:
    heads = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in labels)
    lines = ""
    for i, (name, row) in enumerate(zip(labels, counts, strict=True)):
        lines += f'<tr><th scope="row">{escape(name)}</th>'
        for j, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            shade = SHADES - 1 - min(SHADES - 1, int(share * SHADES))  # h0 is the strongest color
            lines += f'<td class="h{shade}{" best" if i == j else ""}"><b>{count}</b> <span>{share:.0%}</span></td>'
        lines += "</tr>"
    correct, total = sum(row[i] for i, row in enumerate(counts)), sum(map(sum, counts))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="confusion {title}"><table class="matrix"><caption>{title.capitalize()}: {correct} of {total} right</caption>'
        f'<thead><tr><th scope="col">true \\ answered</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _render_entities(entities: dict[str, Any]) -> Iterator[str]:
    counts_by_time = {when: counts for when in WHEN if isinstance(counts := entities.get(when), dict) and counts}
    if not counts_by_time:
        return
    yield "<h2>Entities</h2>"
    yield '<p class="soft">Whole entities of evaluation rows: one is right if its first word, its last word and its type are.</p>'
    head = [
        "type",
        "n|entities",
        *(f"n|{name}, {when}" for name in ("precision", "recall", "F1") for when in counts_by_time),
    ]
    types = list(dict.fromkeys(entity_type for counts in counts_by_time.values() for entity_type in counts))
    rows = [
        _render_scores(entity_type, {when: get_mapping(counts, entity_type) for when, counts in counts_by_time.items()})
        for entity_type in types
    ]
    yield html.render_table("Entities", head, rows)


def _render_scores(name: str, counts_by_time: dict[str, dict[str, int]]) -> list[str]:
    """A table row: the true count, then precision, recall and F1, each before and after training."""
    scores = {when: compute_scores(counts) for when, counts in counts_by_time.items()}
    last = list(counts_by_time.values())[-1]  # the true count is the same before and after
    cells = [html.render_cell(format_number(scores[when][score]), "n") for score in range(3) for when in counts_by_time]
    return [f'<th scope="row">{escape(name)}</th>', html.render_cell(last.get("true", 0), "n"), *cells]


def compute_scores(counts: dict[str, int]) -> tuple[float, float, float]:
    """Precision, recall and F1 from the counts `true` (actual), `found` (predicted) and `right`; 0 for an empty denominator."""
    actual, predicted, correct = (counts.get(name, 0) for name in ("true", "found", "right"))
    return (
        correct / predicted if predicted else 0.0,
        correct / actual if actual else 0.0,
        2 * correct / (predicted + actual) if predicted + actual else 0.0,
    )
