"""Charts of a sweep's report: learning curves, a heat map, parallel coordinates, and the seeds of a configuration. Coordinates in pixels."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from peftrun.formatting import format_figure, format_value, is_number
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
from peftrun.sweep.statistics import Configuration, sort_values
from peftrun.sweep.summary import make_key

LETTERS = "ABCDEFG"  # the best configurations have a letter and a color; the others are gray
SHADES = 7
STRAND = 2.2  # pixels between the lines of two configurations with a letter
POINTS = 12_000  # of all curves of one chart together, so that the page stays small: more cells, fewer points each


@dataclass(frozen=True)
class Curve:
    """A metric of one cell by step. `rank`: of its configuration, 0 for the best; None: gray."""

    name: str
    rank: int | None
    status: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class RankedConfiguration:
    """A configuration and its rank; None beyond those with letters, or if no cell of it is completed."""

    rank: int | None
    configuration: Configuration


def rank_configurations(configurations: Sequence[Configuration]) -> list[RankedConfiguration]:
    """Configurations, best first, with their ranks."""
    return [
        RankedConfiguration(rank if rank < len(LETTERS) and configuration.mean is not None else None, configuration)
        for rank, configuration in enumerate(configurations)
    ]


def _order_best_last(rank: int | None) -> int:
    """Sort key that puts the best last, since SVG draws later shapes on top."""
    return -len(LETTERS) if rank is None else -rank


def get_color_class(rank: int | None) -> str:
    """CSS class of the color of a rank."""
    return "rest" if rank is None else f"c{rank}"


def draw_curves(curves: Sequence[Curve], metric: str, name: str, width: int) -> str:
    """A line per cell over the steps, the letter of its configuration at its end; a cross if it failed, a square if it was stopped."""
    height, left, top = (340 if width == WIDE else 280), 46, 26
    points = [point for curve in curves for point in curve.points]
    x_range = build_scale([0.0, *(x for x, _ in points)], left, width - 34)
    x_scale = Scale(x_range.low, x_range.high, x_range.begin, x_range.end, False)  # steps are never logarithmic
    y_scale = build_scale((y for _, y in points), height - 38, top)
    budget = max(12, POINTS // len(curves) // (1 if width == WIDE else 2))  # points of one curve
    # One letter per configuration, at the mean of its seeds' curves where they end.
    ends_by_rank: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for curve in curves:
        if curve.rank is not None:
            ends_by_rank[curve.rank].append(curve.points[-1])
    letter_ys = []
    for ends in ends_by_rank.values():
        last_step = max(x for x, _ in ends)
        letter_ys.append(y_scale.at(fmean(y for x, y in ends if x == last_step)))
    body = [
        *draw_grid(x_scale, y_scale, metric),
        *_draw_lines(curves, x_scale, y_scale, min(160, budget)),
        *_draw_letters(ends_by_rank, letter_ys, x_scale.end + 8, y_scale),
    ]
    description = (
        f"{metric} over training steps, {len(curves)} cells, from {format_figure(y_scale.low)} to {format_figure(y_scale.high)}"
        + (", logarithmic" if y_scale.log else "")
    )
    return render_svg(name, (width, height), f"Learning curves: {metric}", description, body)


def _draw_lines(curves: Sequence[Curve], x_scale: Scale, y_scale: Scale, max_points: int) -> Iterator[str]:
    for curve in sorted(curves, key=lambda curve: _order_best_last(curve.rank)):
        points = [(x_scale.at(x), y_scale.at(y)) for x, y in thin_points(curve.points, max_points)]
        color = get_color_class(curve.rank)
        yield draw_path(points, f"curve {color}{'' if curve.status == 'completed' else ' broken'}", curve.name)
        x, y = points[-1]
        if curve.status == "failed":
            yield draw_path([(x - 4, y - 4), (x + 4, y + 4)], f"sign {color}", curve.name)
            yield draw_path([(x - 4, y + 4), (x + 4, y - 4)], f"sign {color}", curve.name)
        if curve.status == "stopped":
            yield draw_box(x - 3.5, y - 3.5, (7, 7), f"block {color}", curve.name)


def _draw_letters(ranks: Iterable[int], ys: Sequence[float], x: float, y_scale: Scale) -> Iterator[str]:
    """The letters of these ranks near `ys`, moved apart where they would overlap."""
    for rank, y in zip(ranks, spread_positions(ys, 14, y_scale.end, y_scale.begin), strict=True):
        yield draw_text(x, y + 4, LETTERS[rank], f"letter {get_color_class(rank)}")


def draw_heat_map(
    name: str, axes: dict[str, list[Any]], rows: Sequence[RankedConfiguration], width: int, objective: str
) -> str:
    """A square per configuration by the values of two axes: the mean objective as a number and as a shade."""
    row_axis, column_axis = sorted(
        axes, key=lambda axis: -len(axes[axis])
    )  # the page scrolls down better than sideways
    label_length = max(len(format_value(value)) for value in axes[row_axis])
    left, top, cell_height = 12 + 7 * min(20, label_length), 58, 44
    cell_width = min(150.0, max(52.0, (width - left) / len(axes[column_axis])))
    size = (max(float(width), left + cell_width * len(axes[column_axis])), top + cell_height * len(axes[row_axis]) + 4)
    means = [ranked.configuration.mean for ranked in rows if ranked.configuration.mean is not None]
    shades = build_scale(means, 0, SHADES - 0.01)
    body = [draw_text(left, 16, f"{column_axis} →", "strong"), draw_text(2, 36, f"{row_axis} ↓", "strong")]
    for index, value in enumerate(axes[column_axis]):
        label = truncate_words(format_value(value), cell_width)
        body.append(draw_text(left + cell_width * (index + 0.5), 52, label, "", "middle"))
    for index, value in enumerate(axes[row_axis]):
        label = truncate_words(format_value(value), left - 8)
        body.append(draw_text(left - 8, top + cell_height * (index + 0.5) + 4, label, "", "end"))
    positions = {axis: {make_key(value): index for index, value in enumerate(axes[axis])} for axis in axes}
    for ranked in rows:
        column, row = (positions[axis][make_key(ranked.configuration.values[axis])] for axis in (column_axis, row_axis))
        corner = (left + cell_width * column, top + cell_height * row)
        body += _draw_square(ranked, corner, (cell_width - 3, cell_height - 3), shades)
    description = f"Mean {objective} by {row_axis} (rows) and {column_axis} (columns), {_format_range(means)}; the lowest is framed"
    return render_svg(name, size, f"Heat map of {objective}", description, body)


def _format_range(means: Sequence[float]) -> str:
    return f"from {format_figure(min(means))} to {format_figure(max(means))}" if means else "none measured"


def _draw_square(
    ranked: RankedConfiguration, corner: tuple[float, float], size: tuple[float, float], shades: Scale
) -> Iterator[str]:
    configuration, (x, y), (width, height) = ranked.configuration, corner, size
    center_x, baseline = x + width / 2, y + height / 2 + 4
    if configuration.mean is None:
        statuses = " ".join(sorted({cell["status"] for cell in configuration.cells}))
        yield draw_box(x, y, size, "hole", configuration.name)
        yield draw_text(center_x, baseline, statuses, "", "middle")
        return
    shade, is_best = int(shades.at(configuration.mean)), ranked.rank == 0
    css = f"h{shade}{' best' if is_best else ''}"
    yield draw_box(x + 1, y + 1, (width - 2, height - 2), css, _format_tooltip(configuration))
    label = format_figure(configuration.mean)
    if ranked.rank is not None and width > 70:
        label = f"{LETTERS[ranked.rank]}  {label}"
    yield draw_text(center_x, baseline, label, f"on{shade}{' bold' if is_best else ''}", "middle")


def _format_tooltip(configuration: Configuration) -> str:
    mean = "none" if configuration.mean is None else format_figure(configuration.mean)
    return f"{configuration.name}: {mean}, {len(configuration.scores)} cells"


def draw_parallel_coordinates(
    name: str, axes: dict[str, list[Any]], rows: Sequence[RankedConfiguration], width: int, objective: str
) -> str:
    """A line per configuration through its value on each axis, ending at its mean objective."""
    drawn = [(ranked, mean) for ranked in rows if (mean := ranked.configuration.mean) is not None]
    used = {axis: {make_key(ranked.configuration.values[axis]) for ranked, _ in drawn} for axis in axes}
    axes = {axis: [value for value in values if make_key(value) in used[axis]] for axis, values in axes.items()}
    left, right, top, height = 52, 46, 48, 330
    total_width = max(float(width), left + right + 78.0 * len(axes))
    xs = [left + (total_width - left - right) * index / max(1, len(axes)) for index in range(len(axes) + 1)]
    positions = {axis: _position_values(values, height - 14, top) for axis, values in axes.items()}
    y_scale = build_scale((mean for _, mean in drawn), height - 14, top)
    body: list[str] = []
    for ranked, mean in sorted(drawn, key=lambda pair: _order_best_last(pair[0].rank)):
        configuration = ranked.configuration
        # Lines of equal values are drawn side by side.
        offset = 0.0 if ranked.rank is None else STRAND * (ranked.rank - len(LETTERS) // 2)
        ys = [positions[axis][make_key(configuration.values[axis])] + offset for axis in axes]
        points = zip(xs, [*ys, y_scale.at(mean)], strict=True)
        body.append(draw_path(points, f"curve {get_color_class(ranked.rank)}", _format_tooltip(configuration)))
    for index, axis in enumerate(axes):
        label_width = 0.7 * (xs[1] - left) if index else left - 6
        labels = {make_key(value): truncate_words(format_value(value), label_width) for value in axes[axis]}
        ticks = [(y, labels[key]) for key, y in positions[axis].items()]
        body += _draw_axis(xs[index], axis, index, (top, height), ticks)
    ticks = [(y_scale.at(value), format_tick(value)) for value in y_scale.compute_ticks(6)]
    body += _draw_axis(xs[-1], objective, len(axes), (top, height), ticks)
    lettered = {ranked.rank: y_scale.at(mean) for ranked, mean in drawn if ranked.rank is not None}
    body += _draw_letters(lettered, [*lettered.values()], xs[-1] + 10, y_scale)
    description = (
        f"{len(drawn)} configurations over {', '.join(axes)}; their mean {objective} on the last axis, "
        f"{_format_range([mean for _, mean in drawn])}"
    )
    return render_svg(name, (total_width, height), f"Parallel coordinates of {objective}", description, body)


def _position_values(values: Sequence[Any], begin: float, end: float) -> dict[str, float]:
    """Position of each value on an axis: numbers to scale, others evenly spaced."""
    if all(is_number(value) for value in values):
        scale = build_scale(values, begin, end)
        return {make_key(value): scale.at(value) for value in values}
    step = (end - begin) / max(1, len(values) - 1)
    return {make_key(value): begin + step * index for index, value in enumerate(sort_values([*values]))}


def _draw_axis(
    x: float, axis: str, index: int, ends: tuple[float, float], ticks: Sequence[tuple[float, str]]
) -> Iterator[str]:
    top, height = ends
    yield draw_line(x, top, x, height - 14, "axis")
    anchor = "start" if index == 0 else "middle"
    # Names on two lines in turn, so that neighbors do not overlap.
    yield draw_text(2 if index == 0 else x, 14 + 16 * (index % 2), axis.rsplit(".", 1)[-1], "strong halo", anchor)
    last_label_y = height
    for y, label in sorted(ticks, reverse=True):
        yield draw_line(x - 4, y, x, y, "axis")
        if y < last_label_y - 12:  # otherwise there is no room for a label
            yield draw_text(x - 7, y + 4, label, "halo", "end")
            last_label_y = y


def draw_seeds(name: str, ranked: RankedConfiguration, scale: Scale, objective: str) -> str:
    """One configuration on a line: a ring per seed, a bar for the mean, a stroke for its interval, arrows where that leaves the scale."""
    configuration, y, color = ranked.configuration, 11.0, get_color_class(ranked.rank)
    scores = configuration.scores.values()
    body = [draw_line(scale.begin, y, scale.end, y, "grid")]
    if configuration.interval:
        low, high = (scale.at(end) for end in configuration.interval)
        body.append(draw_line(low, y, high, y, f"span {color}"))
        for end, direction in zip(configuration.interval, (-1, 1), strict=True):
            if not scale.low <= end <= scale.high:
                tip, back = scale.at(end), scale.at(end) - 5 * direction
                body.append(draw_path([(back, y - 5), (tip, y), (back, y + 5)], f"arrow {color}"))
    body += [draw_dot(scale.at(score), y, 3.2, f"ring {color}", format_figure(score)) for score in scores]
    if configuration.mean is not None and len(scores) > 1:
        mean = scale.at(configuration.mean)
        body.append(draw_line(mean, y - 7, mean, y + 7, f"bar {color}"))
    title, description = f"{objective} of {configuration.name}", f"seeds: {', '.join(map(format_figure, scores))}"
    return render_svg(name, (scale.end + 6, 22), title, description, body)


def build_seed_scale(configurations: Sequence[Configuration]) -> Scale:
    """The scale on which the seeds of all configurations are drawn; logarithmic where they span a factor of 10."""
    scores = [score for configuration in configurations for score in configuration.scores.values()] or [0.0]
    low, high = min(scores), max(scores)
    if low > 0 and high / low >= 10:
        return Scale(low / 1.3, high * 1.3, 6, 194, True)
    margin = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, 6, 194, False)
