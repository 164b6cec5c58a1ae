"""What a training's rows of metrics say: curves with their figures beside them, and curves.svg. Light."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from peftrun.formatting import format_number, is_finite, is_number, select_finite
from peftrun.results.report import html
from peftrun.results.report.line_charts import NOISY, WIDE, ChartStyle, Points, Series, draw_chart
from peftrun.results.report.run_facts import RunFacts, get_mapping
from peftrun.results.report.svg import format_tick

LISTED = 40  # rows of a table beside a chart
SHOWN = 4  # charts of other figures in sight; more of them are folded away
SMALL, BROAD = (420, 210), (WIDE, 300)
GAP = 28  # between the charts of curves.svg
APART = {
    "loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens", "resident_bytes", "gpu_peak_bytes", "step", "seconds", "epoch",
}  # fmt: skip
FIRST = ("mean_token_accuracy", "reward", "rewards/accuracies", "rewards/margins", "kl", "entropy")  # of other figures
PLAIN = ("causal_lm", "seq2seq", "seq_cls", "token_cls")  # kinds whose loss is the same on held-out rows


@dataclass(frozen=True)
class Plot:
    """A chart to be drawn. `name`: unique on the page; `note`: what a reader must know of it."""

    name: str
    what: str
    series: list[Series]
    look: ChartStyle
    note: str = ""


def build_plots(run: RunFacts) -> list[Plot]:
    """The charts of a run, the loss first; only those with a figure to show."""
    found = [
        _plot_loss(run),
        *_plot_other_metrics(run),
        _plot_learning_rate(run),
        _plot_gradient_norm(run),
        _plot_speed(run),
        _plot_memory(run),
    ]
    return [one for one in found if any(series.points for series in one.series)]


def render_curves(run: RunFacts) -> Iterator[str]:
    """The charts, each with its figures as a table."""
    drawn = build_plots(run)
    if not drawn:
        yield '<h2>Learning</h2><p class="soft">No step was logged, so there is nothing to draw.</p>'
        return
    yield "<h2>Learning</h2>"
    if any(one.smooth and len(one.points) >= NOISY for each in drawn for one in each.series):
        yield '<p class="soft">Faint: what was logged; strong: its moving mean over a tenth of the steps.</p>'
    if drawn[0].name == "loss":
        first, *drawn = drawn
        yield f"<figure>{html.render_both_widths(first.name, functools.partial(_draw_wide, first))}{_render_figure_data(first)}</figure>"
    others = [one for one in drawn if one.name.startswith("other-")]
    hidden = others[SHOWN:]
    yield f'<div class="charts">{"".join(_render_figure(one) for one in drawn if one not in hidden)}</div>'
    if hidden:
        yield html.render_details(
            f"{len(hidden)} more figures", f'<div class="charts">{"".join(map(_render_figure, hidden))}</div>'
        )


def _draw_wide(one: Plot, name: str, width: int) -> str:
    return draw_chart(name, one.what, one.series, ChartStyle((width, BROAD[1] if width == WIDE else 260)))


def render_curves_svg(run: RunFacts) -> str:
    """All charts as one SVG that stands alone; one line of text where there are none."""
    drawn = build_plots(run)
    columns = [(0.0, BROAD)] if drawn and drawn[0].name == "loss" else []
    parts, y = [], 34.0
    for place, one in enumerate(drawn):
        broad = place == 0 and bool(columns)
        index = place - len(columns)
        x = 0.0 if broad or index % 2 == 0 else float(WIDE - SMALL[0])
        size = BROAD if broad else SMALL
        body = draw_chart(f"c{place}", one.what, one.series, ChartStyle(size, one.look.zero, one.look.log))
        parts.append(f'<g transform="translate({x + 12:g} {y:g})">{body}</g>')
        y += size[1] + GAP if broad or index % 2 == 1 or place == len(drawn) - 1 else 0
    style = (Path(__file__).parent / "curves.css").read_text(encoding="utf-8")
    return _wrap_standalone_svg(f"{run.task} on {run.base}", style, (WIDE + 24.0, y if drawn else 70.0), "".join(parts))


def _wrap_standalone_svg(title: str, style: str, size: tuple[float, float], body: str) -> str:
    width, height = size
    nothing = "" if body else '<text x="12" y="54">No step was logged.</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-labelledby="whole"><title id="whole">{escape(title)}</title><style>{style}</style>'
        f'<rect class="page" width="{width:g}" height="{height:g}"/><text x="14" y="22" class="head">{escape(title)}</text>{nothing}{body}</svg>\n'
    )


def _render_figure(one: Plot) -> str:
    drawing = draw_chart(one.name, one.what, one.series, one.look)
    return f"<figure>{drawing}{_render_figure_data(one)}</figure>"


def _render_figure_data(one: Plot) -> str:
    """What the chart shows as a table, and what must be known of it."""
    series = [each for each in one.series if each.points]
    by_step = [dict(each.points) for each in series]
    steps = sorted({step for each in by_step for step in each})
    some = _pick_steps(steps)
    rows = [
        [
            f'<td class="n">{format_tick(step)}</td>',
            *(html.render_cell(format_number(each[step]) if step in each else "", "n") for each in by_step),
        ]
        for step in some
    ]
    left = f'<p class="soft">{len(some)} of {len(steps)} steps.</p>' if len(some) < len(steps) else ""
    table = html.render_table(one.what, ["n|step", *(f"n|{each.label}" for each in series)], rows)
    note = f"<figcaption>{one.note}</figcaption>" if one.note else ""
    return note + html.render_details("Figures", left + table)


def _pick_steps(steps: Sequence[float]) -> list[float]:
    """Few enough to read, evenly apart, the first and the last among them."""
    if len(steps) <= LISTED:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (LISTED - 1))] for place in range(LISTED)]


def _plot_loss(run: RunFacts) -> Plot:
    series = [
        Series("training", "c0", select_finite(run.rows, "loss"), smooth=True),
        Series("validation", "c1", select_finite(run.rows, "eval_loss")),
    ]
    held_out = _collect_eval_loss(run)
    note = "Held out: rows that nothing is learned from, measured before and after training." if held_out else ""
    return Plot("loss", "loss", [*series, Series("held out", "c2", held_out, marks=True)], ChartStyle(BROAD), note)


def _collect_eval_loss(run: RunFacts) -> list[tuple[float, float]]:
    """The loss on held-out rows at the first step and at the last, where it is the loss that is learned."""
    if get_mapping(run.values, "task").get("kind") not in PLAIN or not any("loss" in row for row in run.rows):
        return []
    last = get_mapping(run.record, "training").get("steps")
    known = ((0, run.before.get("loss")), (last, run.after.get("loss")))
    return [(float(step), float(loss)) for step, loss in known if is_finite(step) and is_finite(loss)]


def _plot_other_metrics(run: RunFacts) -> list[Plot]:
    """A chart for each other figure that was logged."""
    names = [key for key in dict.fromkeys(key for row in run.rows for key in row) if key not in APART]
    ordered = sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [
        Plot(
            f"other-{place}",
            name.replace("_", " "),
            [_make_series(name, select_finite(run.rows, name))],
            ChartStyle(SMALL, log=False),
        )
        for place, name in enumerate(ordered)
    ]


def _make_series(label: str, points: Points) -> Series:
    return Series(label.replace("_", " "), "c0", points, smooth=True)


def _plot_learning_rate(run: RunFacts) -> Plot:
    points = select_finite(run.rows, "learning_rate")
    return Plot(
        "rate", "learning rate", [Series("learning rate", "c3", points)], ChartStyle(SMALL, zero=True, log=False)
    )


def _plot_gradient_norm(run: RunFacts) -> Plot:
    clipped = get_mapping(run.values, "trainer").get("max_grad_norm")
    note = f"Before it is clipped to {format_number(clipped)}." if clipped else ""
    points = select_finite(run.rows, "grad_norm")
    return Plot(
        "gradient", "gradient norm", [Series("gradient norm", "c6", points, smooth=True)], ChartStyle(SMALL), note
    )


def _plot_speed(run: RunFacts) -> Plot:
    tokens = any(is_number(row.get("num_tokens")) for row in run.rows)
    what = "tokens/s" if tokens else "rows/s"
    points = _compute_rates(run.rows, None if tokens else _count_rows_per_step(run))
    others = get_mapping(run.record, "together").get("cells")
    note = f"By the clock, with {others - 1} other cells trained at the same time." if others and others > 1 else ""
    return Plot("speed", what, [Series(what, "c2", points, smooth=True)], ChartStyle(SMALL, zero=True, log=False), note)


def _count_rows_per_step(run: RunFacts) -> int:
    trainer, device = get_mapping(run.values, "trainer"), get_mapping(run.values, "device")
    counts = (
        trainer.get("per_device_train_batch_size"), trainer.get("gradient_accumulation_steps"), device.get("processes"), device.get("machines"),
    )  # fmt: skip
    return math.prod(one for one in counts if isinstance(one, int))


def _compute_rates(rows: Sequence[dict[str, Any]], a_step: int | None) -> list[tuple[float, float]]:
    """What was learned from one row to the next, by the seconds between them; where a run was taken up again, nothing is said."""
    needed = ("step", "seconds") if a_step else ("step", "seconds", "num_tokens")
    found, before = [], dict.fromkeys(needed, 0.0)
    for row in rows:
        if not all(is_finite(row.get(key)) for key in needed):
            continue
        more = {key: row[key] - before[key] for key in needed}
        learned = more["step"] * a_step if a_step else more["num_tokens"]
        if more["seconds"] > 0 and learned > 0:
            found.append((float(row["step"]), learned / more["seconds"]))
        before = {key: row[key] for key in needed}
    return found


def _plot_memory(run: RunFacts) -> Plot:
    series = [
        Series("process", "c4", _read_gigabytes(run.rows, "resident_bytes")),
        Series("GPU, highest so far", "c5", _read_gigabytes(run.rows, "gpu_peak_bytes")),
    ]
    return Plot("memory", "memory, GB", series, ChartStyle(SMALL, zero=True, log=False))


def _read_gigabytes(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(step, count / 1e9) for step, count in select_finite(rows, key)]
