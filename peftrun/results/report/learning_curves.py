"""Learning curves of a run: charts with their data as tables, and curves.svg. Light."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from peftrun.formatting import format_number, is_finite, is_number, select_finite
from peftrun.results.report import html
from peftrun.results.report.line_charts import NOISY, WIDE, ChartStyle, Series, draw_chart
from peftrun.results.report.run_facts import RunFacts, get_mapping
from peftrun.results.report.svg import format_tick

TABLE_ROWS = 40  # of the table next to a chart
SHOWN = 4  # charts of other metrics in sight; further ones are folded
SMALL, BROAD = (420, 210), (WIDE, 300)  # pixels
GAP = 28  # pixels between the charts of curves.svg
SPECIFIC = {  # columns of metrics.jsonl with a chart of their own, or none
    "loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens", "resident_bytes", "gpu_peak_bytes", "step", "seconds", "epoch",
}  # fmt: skip
FIRST = (
    "mean_token_accuracy",
    "reward",
    "rewards/accuracies",
    "rewards/margins",
    "kl",
    "entropy",
)  # order of the other charts
VALIDATION = "eval_"  # begins the names of metrics on the validation rows
# Task types whose evaluation loss is the training loss; those of preference methods are not comparable.
SAME_LOSS = ("causal_lm", "seq2seq", "seq_cls", "token_cls")


@dataclass(frozen=True)
class Plot:
    """A chart to draw. `name`: unique on the page; `title`: with its unit; `note`: caption."""

    name: str
    title: str
    series: list[Series]
    style: ChartStyle
    note: str = ""


def build_plots(run: RunFacts) -> list[Plot]:
    """The charts of a run, the loss first; only those with data."""
    from_zero = ChartStyle(SMALL, zero=True, log=False)
    rates, norms = select_finite(run.rows, "learning_rate"), select_finite(run.rows, "grad_norm")
    max_norm = get_mapping(run.values, "trainer").get("max_grad_norm")
    note = f"Before clipping to {format_number(max_norm)}." if max_norm else ""
    memory = [
        Series("process", "c4", _read_gigabytes(run.rows, "resident_bytes")),
        Series("GPU, highest so far", "c5", _read_gigabytes(run.rows, "gpu_peak_bytes")),
    ]
    names = [key for key in dict.fromkeys(key for row in run.rows for key in row) if key not in SPECIFIC]
    other_plots: list[Plot] = []
    for name in sorted(names, key=_rank_metric):
        is_validation = name.startswith(VALIDATION)
        title = name.replace(VALIDATION, "validation ", is_validation).replace("_", " ")
        series = [
            Series(title, "c1" if is_validation else "c0", select_finite(run.rows, name), smooth=not is_validation)
        ]
        other_plots.append(Plot(f"other-{len(other_plots)}", title, series, ChartStyle(SMALL, log=False)))
    plots = [
        _plot_loss(run),
        *other_plots,
        Plot("rate", "learning rate", [Series("learning rate", "c3", rates)], from_zero),
        Plot("gradient", "gradient norm", [Series("gradient norm", "c6", norms, smooth=True)], ChartStyle(SMALL), note),
        _plot_speed(run),
        Plot("memory", "memory, GB", memory, from_zero),
    ]
    return [plot for plot in plots if any(series.points for series in plot.series)]


def _rank_metric(name: str) -> int:
    """Metrics on the validation rows first, since they were asked for."""
    return -1 if name.startswith(VALIDATION) else FIRST.index(name) if name in FIRST else len(FIRST)


def render_curves(run: RunFacts) -> Iterator[str]:
    """The charts, each with its data as a table."""
    plots = build_plots(run)
    if not plots:
        yield '<h2>Learning</h2><p class="soft">No step was logged, so there is nothing to draw.</p>'
        return
    yield "<h2>Learning</h2>"
    if any(line.smooth and len(line.points) >= NOISY for plot in plots for line in plot.series):
        yield '<p class="soft">Faint: what was logged; strong: its moving mean over a tenth of the steps.</p>'
    if plots[0].name == "loss":
        loss, *plots = plots

        def draw_loss(name: str, width: int) -> str:
            return draw_chart(name, loss.title, loss.series, ChartStyle((width, BROAD[1] if width == WIDE else 260)))

        yield f"<figure>{html.render_both_widths(loss.name, draw_loss)}{_render_figure_data(loss)}</figure>"
    others = [plot for plot in plots if plot.name.startswith("other-")]
    hidden = others[SHOWN:]
    yield f'<div class="charts">{"".join(_render_figure(plot) for plot in plots if plot not in hidden)}</div>'
    if hidden:
        yield html.render_details(
            f"{len(hidden)} more metrics", f'<div class="charts">{"".join(map(_render_figure, hidden))}</div>'
        )


def render_curves_svg(run: RunFacts) -> str:
    """All charts as one standalone SVG; a line of text if there are none."""
    plots = build_plots(run)
    has_loss = bool(plots) and plots[0].name == "loss"  # drawn over both columns
    groups, y = [], 34.0  # pixels; the title is above
    for number, plot in enumerate(plots):
        is_broad = number == 0 and has_loss
        column = (number - has_loss) % 2
        x = 0.0 if is_broad or column == 0 else float(WIDE - SMALL[0])
        size = BROAD if is_broad else SMALL
        svg = draw_chart(f"c{number}", plot.title, plot.series, ChartStyle(size, plot.style.zero, plot.style.log))
        groups.append(f'<g transform="translate({x + 12:g} {y:g})">{svg}</g>')
        y += size[1] + GAP if is_broad or column == 1 or number == len(plots) - 1 else 0
    style = (Path(__file__).parent / "curves.css").read_text(encoding="utf-8")
    title, width, height = f"{run.task} on {run.base}", WIDE + 24.0, y if plots else 70.0
    body = "".join(groups) or '<text x="12" y="54">No step was logged.</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-labelledby="whole"><title id="whole">{escape(title)}</title><style>{style}</style>'
        f'<rect class="page" width="{width:g}" height="{height:g}"/><text x="14" y="22" class="head">{escape(title)}</text>{body}</svg>\n'
    )


def _render_figure(plot: Plot) -> str:
    svg = draw_chart(plot.name, plot.title, plot.series, plot.style)
    return f"<figure>{svg}{_render_figure_data(plot)}</figure>"


def _render_figure_data(plot: Plot) -> str:
    """The chart's data as a table, and its caption."""
    series = [line for line in plot.series if line.points]
    values_by_step = [dict(line.points) for line in series]
    all_steps = sorted({step for values in values_by_step for step in values})
    steps = all_steps
    if len(all_steps) > TABLE_ROWS:  # evenly spaced, with the first and the last
        steps = [all_steps[round(row * (len(all_steps) - 1) / (TABLE_ROWS - 1))] for row in range(TABLE_ROWS)]
    rows = [
        [
            f'<td class="n">{format_tick(step)}</td>',
            *(
                html.render_cell(format_number(values[step]) if step in values else "", "n")
                for values in values_by_step
            ),
        ]
        for step in steps
    ]
    selection = f'<p class="soft">{len(steps)} of {len(all_steps)} steps.</p>' if len(steps) < len(all_steps) else ""
    table = html.render_table(plot.title, ["n|step", *(f"n|{line.label}" for line in series)], rows)
    note = f"<figcaption>{plot.note}</figcaption>" if plot.note else ""
    return note + html.render_details("Data", selection + table)


def _plot_loss(run: RunFacts) -> Plot:
    series = [
        Series("training", "c0", select_finite(run.rows, "loss"), smooth=True),
        Series("validation", "c1", select_finite(run.rows, "eval_loss")),
    ]
    evaluation = _collect_eval_loss(run)
    note = "Evaluation: rows that are not trained on, measured before and after training." if evaluation else ""
    return Plot("loss", "loss", [*series, Series("evaluation", "c2", evaluation, marks=True)], ChartStyle(BROAD), note)


def _collect_eval_loss(run: RunFacts) -> list[tuple[float, float]]:
    """(step, loss) on evaluation rows at the first and the last step, if it is comparable to the training loss."""
    if get_mapping(run.values, "task").get("type") not in SAME_LOSS or not any("loss" in row for row in run.rows):
        return []
    last_step = get_mapping(run.record, "training").get("steps")
    points = ((0, run.before.get("loss")), (last_step, run.after.get("loss")))
    return [(float(step), float(loss)) for step, loss in points if is_finite(step) and is_finite(loss)]


def _plot_speed(run: RunFacts) -> Plot:
    has_tokens = any(is_number(row.get("num_tokens")) for row in run.rows)
    unit = "tokens/s" if has_tokens else "rows/s"
    trainer, device = get_mapping(run.values, "trainer"), get_mapping(run.values, "device")
    factors = (
        trainer.get("per_device_train_batch_size"), trainer.get("gradient_accumulation_steps"), device.get("num_processes"), device.get("num_machines"),
    )  # fmt: skip
    rows_per_step = math.prod(factor for factor in factors if isinstance(factor, int))
    # Tokens or rows per second between consecutive log rows. A row whose counters fall back, where a run was resumed, gives
    # no point.
    keys = ("step", "seconds", "num_tokens") if has_tokens else ("step", "seconds")
    points, previous = [], dict.fromkeys(keys, 0.0)
    for row in run.rows:
        if not all(is_finite(row.get(key)) for key in keys):
            continue
        increase = {key: row[key] - previous[key] for key in keys}
        count = increase["num_tokens"] if has_tokens else increase["step"] * rows_per_step
        if increase["seconds"] > 0 and count > 0:
            points.append((float(row["step"]), count / increase["seconds"]))
        previous = {key: row[key] for key in keys}
    cells = get_mapping(run.record, "joint_training").get("cells")
    note = f"Wall time, with {cells - 1} other cells trained at the same time." if cells and cells > 1 else ""
    return Plot("speed", unit, [Series(unit, "c2", points, smooth=True)], ChartStyle(SMALL, zero=True, log=False), note)


def _read_gigabytes(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(step, count / 1e9) for step, count in select_finite(rows, key)]
