"""The charts of a sweep's report: learning curves, a heat map, parallel coordinates, and where each seed lies."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from peftrun.formatting import format_figure, is_number
from peftrun.results.report.line_charts import WIDE, draw_grid, thin_points
from peftrun.results.report.svg import (
    Scale,
    build_scale,
    draw_box,
    draw_dot,
    draw_line,
    draw_path,
    draw_text,
    format_tick,
    render_svg,
    spread_positions,
    truncate_words,
)
from peftrun.sweep.statistics import Configuration, format_override_value, sort_values
from peftrun.sweep.summary import make_key

LETTERS = "ABCDEFG"  # the best configurations have a letter and a colour; the others are grey
SHADES = 7
STRAND = 2.2  # pixels between the lines of two configurations with a letter
POINTS = 12_000  # of all curves of one chart together: more cells, fewer points each


@dataclass(frozen=True)
class Curve:
    """One cell's figures by step. `place`: of its configuration, the best being 0; None: grey."""

    name: str
    place: int | None
    status: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class RankedConfiguration:
    """A configuration and its place; None beyond those with letters, or where no cell of it is completed."""

    place: int | None
    one: Configuration


def rank_configurations(found: Sequence[Configuration]) -> list[RankedConfiguration]:
    """Configurations, best first, with their places."""
    return [
        RankedConfiguration(place if place < len(LETTERS) and one.mean is not None else None, one)
        for place, one in enumerate(found)
    ]


def get_color_class(place: int | None) -> str:
    """Class of the colour of a place."""
    return "rest" if place is None else f"c{place}"


def draw_curves(name: str, found: Sequence[Curve], width: int, what: str) -> str:
    """A line a cell over the steps, the letter of its configuration at its end; a cross where it failed, a square where it was stopped."""
    height, left, top = (340 if width == WIDE else 280), 46, 26
    points = [point for one in found for point in one.points]
    across = build_scale([0.0, *(x for x, _ in points)], left, width - 34)
    along = Scale(across.low, across.high, across.begin, across.end, False)
    upward = build_scale((y for _, y in points), height - 38, top)
    budget = max(12, POINTS // len(found) // (1 if width == WIDE else 2))
    body = [
        *draw_grid(along, upward, what),
        *_draw_lines(found, along, upward, min(160, budget)),
        *_draw_curve_letters(found, along, upward),
    ]
    said = (
        f"{what} over training steps, {len(found)} cells, from {format_figure(upward.low)} to {format_figure(upward.high)}"
        + (", logarithmic" if upward.log else "")
    )
    return render_svg(name, (width, height), f"Learning curves: {what}", said, body)


def _draw_lines(found: Sequence[Curve], along: Scale, upward: Scale, most: int) -> Iterator[str]:
    for one in sorted(found, key=lambda each: -len(LETTERS) if each.place is None else -each.place):  # best on top
        points = [(along.at(x), upward.at(y)) for x, y in thin_points(one.points, most)]
        yield draw_path(
            points, f"curve {get_color_class(one.place)}{'' if one.status == 'completed' else ' broken'}", one.name
        )
        x, y = points[-1]
        if one.status == "failed":
            yield draw_path([(x - 4, y - 4), (x + 4, y + 4)], f"sign {get_color_class(one.place)}", one.name)
            yield draw_path([(x - 4, y + 4), (x + 4, y - 4)], f"sign {get_color_class(one.place)}", one.name)
        if one.status == "stopped":
            yield draw_box(x - 3.5, y - 3.5, (7, 7), f"block {get_color_class(one.place)}", one.name)


def _draw_curve_letters(found: Sequence[Curve], along: Scale, upward: Scale) -> Iterator[str]:
    last: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in found:
        if one.place is not None:
            last[one.place].append(one.points[-1])
    furthest = {place: max(x for x, _ in ends) for place, ends in last.items()}
    middles = [upward.at(fmean(y for x, y in ends if x == furthest[place])) for place, ends in last.items()]
    for place, y in zip(last, spread_positions(middles, 14, upward.end, upward.begin), strict=True):
        yield draw_text(along.end + 8, y + 4, LETTERS[place], f"letter {get_color_class(place)}")


def draw_heat_map(
    name: str, axes: dict[str, list[Any]], found: Sequence[RankedConfiguration], width: int, what: str
) -> str:
    """A square a configuration, by the values of two axes: the mean of the objective as a number and as a shade."""
    down, right = sorted(axes, key=lambda axis: -len(axes[axis]))
    left, top, high = 12 + 7 * min(20, max(len(format_override_value(value)) for value in axes[down])), 58, 44
    wide = min(150.0, max(52.0, (width - left) / len(axes[right])))
    size = (max(float(width), left + wide * len(axes[right])), top + high * len(axes[down]) + 4)
    shade = build_scale((one.one.mean for one in found if one.one.mean is not None), 0, SHADES - 0.01)
    body = [draw_text(left, 16, f"{right} →", "strong"), draw_text(2, 36, f"{down} ↓", "strong")]
    body += [
        draw_text(left + wide * (n + 0.5), 52, truncate_words(format_override_value(value), wide), "", "middle")
        for n, value in enumerate(axes[right])
    ]
    body += [
        draw_text(
            left - 8, top + high * (n + 0.5) + 4, truncate_words(format_override_value(value), left - 8), "", "end"
        )
        for n, value in enumerate(axes[down])
    ]
    places = {axis: {make_key(value): n for n, value in enumerate(axes[axis])} for axis in axes}
    for one in found:
        column, row = (places[axis][make_key(one.one.values[axis])] for axis in (right, down))
        body += _draw_square(one, left + wide * column, top + high * row, (wide - 3, high - 3), shade)
    means = [one.one.mean for one in found if one.one.mean is not None]
    said = f"Mean {what} by {down} (rows) and {right} (columns), {_format_range(means)}; the lowest is framed"
    return render_svg(name, size, f"Heat map of {what}", said, body)


def _format_range(means: Sequence[float]) -> str:
    return f"from {format_figure(min(means))} to {format_figure(max(means))}" if means else "none measured"


def _draw_square(
    found: RankedConfiguration, x: float, y: float, size: tuple[float, float], shade: Scale
) -> Iterator[str]:
    one, middle = found.one, (x + size[0] / 2, y + size[1] / 2)
    if one.mean is None:
        yield draw_box(x, y, size, "hole", one.name)
        yield draw_text(middle[0], middle[1] + 4, _explain_missing(one), "", "middle")
        return
    step, best = int(shade.at(one.mean)), found.place == 0
    yield draw_box(x + 1, y + 1, (size[0] - 2, size[1] - 2), f"h{step}{' best' if best else ''}", _format_tooltip(one))
    words = (
        f"{LETTERS[found.place]}  {format_figure(one.mean)}"
        if found.place is not None and size[0] > 70
        else format_figure(one.mean)
    )
    yield draw_text(middle[0], middle[1] + 4, words, f"on{step}{' bold' if best else ''}", "middle")


def _explain_missing(one: Configuration) -> str:
    return " ".join(sorted({cell["status"] for cell in one.cells}))


def _format_tooltip(one: Configuration) -> str:
    return f"{one.name}: {'none' if one.mean is None else format_figure(one.mean)}, {len(one.scores)} cells"


def draw_parallel_coordinates(
    name: str, axes: dict[str, list[Any]], found: Sequence[RankedConfiguration], width: int, what: str
) -> str:
    """A line a configuration through its value on each axis, ending at its mean objective."""
    drawn = [one for one in found if one.one.mean is not None]
    seen = {axis: {make_key(one.one.values[axis]) for one in drawn} for axis in axes}
    axes = {axis: [value for value in values if make_key(value) in seen[axis]] for axis, values in axes.items()}
    names = [*axes, what]
    left, right, top, height = 52, 46, 48, 330
    wide = max(float(width), left + right + 78.0 * (len(names) - 1))
    across = [left + (wide - left - right) * n / max(1, len(names) - 1) for n in range(len(names))]
    scales = {axis: _place_values(values, height - 14, top) for axis, values in axes.items()}
    upward = build_scale((one.one.mean for one in drawn if one.one.mean is not None), height - 14, top)
    body: list[str] = []
    for one in sorted(drawn, key=lambda each: -len(LETTERS) if each.place is None else -each.place):
        aside = (
            0.0 if one.place is None else STRAND * (one.place - len(LETTERS) // 2)
        )  # lines of equal values stay apart
        ys = [*(scales[axis][make_key(one.one.values[axis])] + aside for axis in axes), upward.at(one.one.mean or 0)]
        body.append(
            draw_path(zip(across, ys, strict=True), f"curve {get_color_class(one.place)}", _format_tooltip(one.one))
        )
    for n, axis in enumerate(axes):
        labels = {
            make_key(value): truncate_words(format_override_value(value), 0.7 * (across[1] - left) if n else left - 6)
            for value in axes[axis]
        }
        body += _draw_axis(across[n], axis, n, (top, height), [(y, labels[key]) for key, y in scales[axis].items()])
    ticks = [(upward.at(value), format_tick(value)) for value in upward.compute_ticks(6)]
    body += _draw_axis(across[-1], what, len(names) - 1, (top, height), ticks)
    body += _draw_letters(drawn, across[-1], upward)
    said = f"{len(drawn)} configurations over {', '.join(axes)}; their mean {what} on the last axis, {_format_range([one.one.mean or 0 for one in drawn])}"
    return render_svg(name, (wide, height), f"Parallel coordinates of {what}", said, body)


def _place_values(values: Sequence[Any], begin: float, end: float) -> dict[str, float]:
    """Where each value of an axis lies: numbers to scale, others evenly apart."""
    if all(is_number(value) for value in values):
        measured = build_scale(values, begin, end)
        return {make_key(value): measured.at(value) for value in values}
    step = (end - begin) / max(1, len(values) - 1)
    return {make_key(value): begin + step * n for n, value in enumerate(sort_values([*values]))}


def _draw_axis(
    x: float, axis: str, n: int, ends: tuple[float, float], ticks: Sequence[tuple[float, str]]
) -> Iterator[str]:
    top, height = ends
    yield draw_line(x, top, x, height - 14, "axis")
    anchor = "start" if n == 0 else "middle"
    yield draw_text(2 if n == 0 else x, 14 + 16 * (n % 2), axis.rsplit(".", 1)[-1], "strong halo", anchor)
    free = height
    for y, words in sorted(ticks, reverse=True):
        yield draw_line(x - 4, y, x, y, "axis")
        if y < free - 12:  # no room: the tick alone
            yield draw_text(x - 7, y + 4, words, "halo", "end")
            free = y


def _draw_letters(drawn: Sequence[RankedConfiguration], x: float, upward: Scale) -> Iterator[str]:
    lettered = [one for one in drawn if one.place is not None]
    middles = [upward.at(one.one.mean or 0) for one in lettered]
    for one, y in zip(lettered, spread_positions(middles, 14, upward.end, upward.begin), strict=True):
        yield draw_text(x + 10, y + 4, LETTERS[one.place or 0], f"letter {get_color_class(one.place)}")


def draw_seeds(name: str, found: RankedConfiguration, reach: Scale, what: str) -> str:
    """One configuration on a line: a ring a seed, a bar for the mean, a stroke for its interval, arrows where that leaves the page."""
    one, middle, css = found.one, 11.0, get_color_class(found.place)
    body = [draw_line(reach.begin, middle, reach.end, middle, "grid")]
    if one.interval:
        low, high = one.interval
        body.append(draw_line(reach.at(low), middle, reach.at(high), middle, f"span {css}"))
        body += [
            _draw_arrow(reach.at(end), middle, css, sign)
            for end, sign in ((low, -1), (high, 1))
            if _is_beyond(end, reach)
        ]
    body += [
        draw_dot(reach.at(score), middle, 3.2, f"ring {css}", format_figure(score)) for score in one.scores.values()
    ]
    if one.mean is not None and len(one.scores) > 1:
        body.append(draw_line(reach.at(one.mean), middle - 7, reach.at(one.mean), middle + 7, f"bar {css}"))
    return render_svg(
        name,
        (reach.end + 6, 22),
        f"{what} of {one.name}",
        f"seeds: {', '.join(map(format_figure, one.scores.values()))}",
        body,
    )


def build_seed_scale(found: Sequence[Configuration]) -> Scale:
    """The line on which the seeds of all configurations lie."""
    scores = [score for one in found for score in one.scores.values()] or [0.0]
    low, high = min(scores), max(scores)
    if low > 0 and high / low >= 10:
        return Scale(low / 1.3, high * 1.3, 6, 194, True)
    more = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return Scale(low - more, high + more, 6, 194, False)


def _is_beyond(value: float, limits: Scale) -> bool:
    return not limits.low <= value <= limits.high


def _draw_arrow(x: float, y: float, css: str, sign: int) -> str:
    return draw_path([(x - 5 * sign, y - 5), (x, y), (x - 5 * sign, y + 5)], f"arrow {css}")
