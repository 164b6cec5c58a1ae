"""Line charts of metrics over training steps, for one run or several, as SVG. Light."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from peftrun.formatting import format_number
from peftrun.results.report.svg import (
    CHARACTER_WIDTH,
    Scale,
    build_scale,
    draw_dot,
    draw_line,
    draw_path,
    draw_text,
    format_tick,
    render_svg,
)

WIDE, NARROW = 860, 340  # pixels
MAX_POINTS = 400  # points of a line; longer ones are thinned to means of neighbors
MAX_TIPS = 60  # points of a line with a tooltip
NOISY = 30  # points from which on a line is drawn faintly under its moving mean
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: text of the legend.
        css: class of its color: c0 … c6, rest.
        points: (step, value), finite, sorted by step.
        marks: draw rings in place of a line.
        smooth: draw many points faintly, with their moving mean over them.
    """

    label: str
    css: str
    points: Points
    marks: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class ChartStyle:
    """How a chart is drawn. `size`: pixels; `zero`: the scale starts at 0; `log`: it may be logarithmic; `across`: name of the x axis."""

    size: tuple[float, float] = (WIDE, 300)
    zero: bool = False
    log: bool = True
    across: str = "step"


def draw_chart(name: str, title: str, series: Sequence[Series], style: ChartStyle = ChartStyle()) -> str:
    """SVG with all lines on one pair of scales, with a title, a description and, for several lines, a legend.

    Args: name: unique on the page. title: title of the y axis, with its unit. series: at least one with a point.
    """
    width, height = style.size
    drawn = [line for line in series if line.points]
    top = 44.0 if len(drawn) > 1 else 28.0  # pixels; a legend takes a line
    along, upward = _build_scales(drawn, (width, height - 38), top, style)
    body = [*draw_grid(along, upward, title, style.across)]
    body += _draw_legend(drawn, along.begin) if len(drawn) > 1 else []
    for line in reversed(drawn):  # the first series, drawn last, is on top
        if not line.marks:
            body += _draw_series(line, along, upward)
            continue
        for x, y in line.points:
            label = f"{line.label}, step {format_tick(x)}: {format_number(y)}"
            body.append(draw_dot(along.at(x), upward.at(y), 4.5, f"ring {line.css}", label))
    descriptions = (
        f"{line.label}: {len(line.points)} {'value' if len(line.points) == 1 else 'values'}, "
        f"from {format_number(line.points[0][1])} to {format_number(line.points[-1][1])}"
        for line in drawn
    )
    description = f"{title} over {style.across}s{', logarithmic' if upward.log else ''}. {'; '.join(descriptions)}"
    return render_svg(name, (width, height), title, description, body)


def _build_scales(
    drawn: Sequence[Series], corner: tuple[float, float], top: float, style: ChartStyle
) -> tuple[Scale, Scale]:
    steps = [x for line in drawn for x, _ in line.points]
    # The x axis starts at 0 unless the data starts late, as after a resume.
    first = min([0.0, *steps]) if len({*steps}) == 1 or min(steps) < 0.2 * max(steps) else min(steps)
    values = [y for line in drawn for _, y in line.points] + ([0.0] if style.zero else [])
    scale = build_scale(values, corner[1], top)
    if scale.log and not style.log:
        scale = Scale(scale.low, scale.high, scale.begin, scale.end, False)
    # A margin above and below, so that a flat line is not on the edge; none below 0 for values that cannot be negative.
    margin = (scale.high - scale.low) * 0.06 or abs(scale.high) * 0.1 or 1.0
    low, high = scale.low - margin, scale.high + margin
    if scale.log:
        low, high = scale.low / 1.1, scale.high * 1.1
    elif scale.low >= 0:
        low = 0.0 if scale.low == 0 else max(low, 0.0)
    upward = Scale(low, high, scale.begin, scale.end, scale.log)
    return Scale(first, max(steps), 46, corner[0] - 14, False), upward


def draw_grid(along: Scale, upward: Scale, title: str, across: str = "step") -> Iterator[str]:
    """Grid lines with their numbers, and the names of both axes."""
    for value in upward.compute_ticks(5):
        yield draw_line(along.begin, upward.at(value), along.end, upward.at(value), "grid")
        yield draw_text(along.begin - 6, upward.at(value) + 4, format_tick(value), "", "end")
    for value in along.compute_ticks(4 if along.end < 500 else 8):
        yield draw_text(along.at(value), upward.begin + 18, format_tick(value), "", "middle")
    yield draw_line(along.begin, upward.begin, along.end, upward.begin, "axis")
    yield draw_text(along.end, upward.begin + 33, across, "strong", "end")
    yield draw_text(2, 14, f"{title}{', logarithmic' if upward.log else ''}", "strong")


def _draw_legend(drawn: Sequence[Series], left: float) -> Iterator[str]:
    for line in drawn:
        if line.marks:
            yield draw_dot(left + 8, 30, 4, f"ring {line.css}")
        else:
            yield draw_line(left, 30, left + 16, 30, f"curve {line.css}")
        yield draw_text(left + 22, 34, line.label)
        left += 22 + CHARACTER_WIDTH * len(line.label) + 18


def _draw_series(line: Series, along: Scale, upward: Scale) -> Iterator[str]:
    points = thin_points(line.points, MAX_POINTS)
    positions = [(along.at(x), upward.at(y)) for x, y in points]
    is_noisy = line.smooth and len(points) >= NOISY
    if len(positions) > 1:
        yield draw_path(positions, f"curve {line.css}{' faint' if is_noisy else ''}", line.label)
    if is_noisy:
        yield draw_path(
            [(along.at(x), upward.at(y)) for x, y in smooth_points(points)], f"curve {line.css}", line.label
        )
    with_tooltip = points[:: max(1, len(points) // MAX_TIPS)]
    for x, y in with_tooltip:
        yield draw_dot(
            along.at(x), upward.at(y), 7, "touch", f"{line.label}, step {format_tick(x)}: {format_number(y)}"
        )
    if len(positions) < NOISY:
        for x, y in positions:
            yield draw_dot(x, y, 2.4, f"point {line.css}")


def thin_points(points: Points, max_points: int) -> list[tuple[float, float]]:
    """At most `max_points` points: means of runs of neighbors; the first and the last point are kept."""
    if len(points) <= max_points:
        return list(points)
    inner, run_count = points[1:-1], max_points - 2
    cuts = [len(inner) * run // run_count for run in range(run_count + 1)]
    chunks = [inner[begin:end] for begin, end in pairwise(cuts)]
    return [points[0], *((fmean(x for x, _ in chunk), fmean(y for _, y in chunk)) for chunk in chunks), points[-1]]


def smooth_points(points: Points) -> list[tuple[float, float]]:
    """Moving mean over a tenth of the points; the window shrinks at both ends, so that the end points are kept."""
    half, last = max(1, len(points) // 20), len(points) - 1
    half_widths = [min(half, i, last - i) for i in range(len(points))]
    return [
        (x, fmean(y for _, y in points[i - half_width : i + half_width + 1]))
        for i, ((x, _), half_width) in enumerate(zip(points, half_widths, strict=True))
    ]
