"""Figures over training steps: lines with their grid, for one run or for several. Light."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from peftrun.formatting import format_number
from peftrun.results.report.svg import (
    Scale,
    build_scale,
    draw_dot,
    draw_line,
    draw_path,
    draw_text,
    format_tick,
    render_svg,
)

WIDE, NARROW = 860, 340
MAX_POINTS = 400  # points of a line; longer ones are drawn as means of neighbours
MAX_TIPS = 60  # points of a line that tell their figure when the pointer rests on them
NOISY = 30  # points from which on a line is drawn faintly beside its moving mean
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: what it is, for the legend.
        css: class of its colour: c0 … c6, rest.
        points: (step, figure), finite, by step.
        marks: rings in place of a line.
        smooth: many points are drawn faintly, with their moving mean over them.
    """

    label: str
    css: str
    points: Points
    marks: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class ChartStyle:
    """How a chart is drawn. `zero`: the scale begins at 0; `log`: it may be logarithmic; `across`: what lies along the bottom."""

    size: tuple[float, float] = (WIDE, 300)
    zero: bool = False
    log: bool = True
    across: str = "step"


def draw_chart(name: str, what: str, series: Sequence[Series], look: ChartStyle = ChartStyle()) -> str:
    """An SVG of all lines on one pair of scales, with a title, a description and a legend where there are several.

    Args: name: unique on the page. what: what is drawn upward, with its unit. series: at least one with a point.
    """
    width, height = look.size
    drawn = [one for one in series if one.points]
    top = 44.0 if len(drawn) > 1 else 28.0
    along, upward = _build_scales(drawn, (width, height - 38), top, look)
    body = [*draw_grid(along, upward, what, look.across)]
    body += _draw_legend(drawn, along.begin) if len(drawn) > 1 else []
    for one in reversed(drawn):
        body += _draw_marks(one, along, upward) if one.marks else _draw_series(one, along, upward)
    return render_svg(name, (width, height), what, _describe_chart(what, drawn, upward, look.across), body)


def _build_scales(
    drawn: Sequence[Series], corner: tuple[float, float], top: float, look: ChartStyle
) -> tuple[Scale, Scale]:
    across = [x for one in drawn for x, _ in one.points]
    low = min([0.0, *across]) if len({*across}) == 1 or min(across) < 0.2 * max(across) else min(across)
    values = [y for one in drawn for _, y in one.points] + ([0.0] if look.zero else [])
    found = build_scale(values, corner[1], top)
    if found.log and not look.log:
        found = Scale(found.low, found.high, found.begin, found.end, False)
    return Scale(low, max(across), 46, corner[0] - 14, False), _pad_scale(found)


def _pad_scale(found: Scale) -> Scale:
    """With some room above and below, so that a flat line does not lie on the edge."""
    if found.log:
        return Scale(found.low / 1.1, found.high * 1.1, found.begin, found.end, True)
    more = (found.high - found.low) * 0.06 or abs(found.high) * 0.1 or 1.0
    low = found.low if found.low == 0 else found.low - more
    return Scale(max(low, 0.0) if found.low >= 0 else low, found.high + more, found.begin, found.end, False)


def draw_grid(along: Scale, upward: Scale, what: str, across: str = "step") -> Iterator[str]:
    """Lines and numbers behind a chart, and the names of both scales."""
    for value in upward.compute_ticks(5):
        yield draw_line(along.begin, upward.at(value), along.end, upward.at(value), "grid")
        yield draw_text(along.begin - 6, upward.at(value) + 4, format_tick(value), "", "end")
    for value in along.compute_ticks(4 if along.end < 500 else 8):
        yield draw_text(along.at(value), upward.begin + 18, format_tick(value), "", "middle")
    yield draw_line(along.begin, upward.begin, along.end, upward.begin, "axis")
    yield draw_text(along.end, upward.begin + 33, across, "strong", "end")
    yield draw_text(2, 14, f"{what}{', logarithmic' if upward.log else ''}", "strong")


def _draw_legend(drawn: Sequence[Series], left: float) -> Iterator[str]:
    for one in drawn:
        if one.marks:
            yield draw_dot(left + 8, 30, 4, f"ring {one.css}")
        else:
            yield draw_line(left, 30, left + 16, 30, f"curve {one.css}")
        yield draw_text(left + 22, 34, one.label)
        left += 22 + 6.6 * len(one.label) + 18


def _draw_series(one: Series, along: Scale, upward: Scale) -> Iterator[str]:
    points = thin_points(one.points, MAX_POINTS)
    places = [(along.at(x), upward.at(y)) for x, y in points]
    noisy = one.smooth and len(points) >= NOISY
    if len(places) > 1:
        yield draw_path(places, f"curve {one.css}{' faint' if noisy else ''}", one.label)
    if noisy:
        yield draw_path([(along.at(x), upward.at(y)) for x, y in smooth_points(points)], f"curve {one.css}", one.label)
    told = points[:: max(1, len(points) // MAX_TIPS)]
    for x, y in told:
        yield draw_dot(along.at(x), upward.at(y), 7, "touch", f"{one.label}, step {format_tick(x)}: {format_number(y)}")
    if len(places) < NOISY:
        for x, y in places:
            yield draw_dot(x, y, 2.4, f"point {one.css}")


def _draw_marks(one: Series, along: Scale, upward: Scale) -> Iterator[str]:
    for x, y in one.points:
        yield draw_dot(
            along.at(x), upward.at(y), 4.5, f"ring {one.css}", f"{one.label}, step {format_tick(x)}: {format_number(y)}"
        )


def _describe_chart(what: str, drawn: Sequence[Series], upward: Scale, across: str) -> str:
    each = (
        f"{one.label}: {len(one.points)} {'figure' if len(one.points) == 1 else 'figures'}, "
        f"from {format_number(one.points[0][1])} to {format_number(one.points[-1][1])}"
        for one in drawn
    )
    return f"{what} over {across}s{', logarithmic' if upward.log else ''}. {'; '.join(each)}"


def thin_points(points: Points, most: int) -> list[tuple[float, float]]:
    """At most so many points: the means of runs of neighbours; the first and the last stay as they are."""
    if len(points) <= most:
        return list(points)
    inner, runs = points[1:-1], most - 2
    cuts = [len(inner) * place // runs for place in range(runs + 1)]
    parts = [inner[begin:end] for begin, end in pairwise(cuts)]
    return [points[0], *((fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts), points[-1]]


def smooth_points(points: Points) -> list[tuple[float, float]]:
    """The moving mean over a tenth of the points, fewer at both ends so that it begins and ends where they do."""
    half, last = max(1, len(points) // 20), len(points) - 1
    reach = [min(half, place, last - place) for place in range(len(points))]
    return [
        (x, fmean(y for _, y in points[place - wide : place + wide + 1]))
        for place, ((x, _), wide) in enumerate(zip(points, reach, strict=True))
    ]
