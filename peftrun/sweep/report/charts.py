"""The charts of a sweep's report: learning curves, a heat map, parallel coordinates, and where each seed lies."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from peftrun.formatting import figure, is_number
from peftrun.results.report.line_charts import WIDE, grid, thinned
from peftrun.results.report.svg import Scale, apart, box, dot, fitting, line, number, path, scale, svg, text
from peftrun.sweep.statistics import Configuration, in_order, show
from peftrun.sweep.summary import as_key

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
class Ranked:
    """A configuration and its place; None beyond those with letters, or where no cell of it is completed."""

    place: int | None
    one: Configuration


def ranked(found: Sequence[Configuration]) -> list[Ranked]:
    """Configurations, best first, with their places."""
    return [
        Ranked(place if place < len(LETTERS) and one.mean is not None else None, one) for place, one in enumerate(found)
    ]


def colour(place: int | None) -> str:
    """Class of the colour of a place."""
    return "rest" if place is None else f"c{place}"


def curves(name: str, found: Sequence[Curve], width: int, what: str) -> str:
    """A line a cell over the steps, the letter of its configuration at its end; a cross where it failed, a square where it was stopped."""
    height, left, top = (340 if width == WIDE else 280), 46, 26
    points = [point for one in found for point in one.points]
    across = scale([0.0, *(x for x, _ in points)], left, width - 34)
    along = Scale(across.low, across.high, across.begin, across.end, False)
    upward = scale((y for _, y in points), height - 38, top)
    budget = max(12, POINTS // len(found) // (1 if width == WIDE else 2))
    body = [*grid(along, upward, what), *_lines(found, along, upward, min(160, budget)), *_ends(found, along, upward)]
    said = f"{what} over training steps, {len(found)} cells, from {figure(upward.low)} to {figure(upward.high)}" + (
        ", logarithmic" if upward.log else ""
    )
    return svg(name, (width, height), f"Learning curves: {what}", said, body)


def _lines(found: Sequence[Curve], along: Scale, upward: Scale, most: int) -> Iterator[str]:
    for one in sorted(found, key=lambda each: -len(LETTERS) if each.place is None else -each.place):  # best on top
        points = [(along.at(x), upward.at(y)) for x, y in thinned(one.points, most)]
        yield path(points, f"curve {colour(one.place)}{'' if one.status == 'completed' else ' broken'}", one.name)
        x, y = points[-1]
        if one.status == "failed":
            yield path([(x - 4, y - 4), (x + 4, y + 4)], f"sign {colour(one.place)}", one.name)
            yield path([(x - 4, y + 4), (x + 4, y - 4)], f"sign {colour(one.place)}", one.name)
        if one.status == "stopped":
            yield box(x - 3.5, y - 3.5, (7, 7), f"block {colour(one.place)}", one.name)


def _ends(found: Sequence[Curve], along: Scale, upward: Scale) -> Iterator[str]:
    last: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in found:
        if one.place is not None:
            last[one.place].append(one.points[-1])
    furthest = {place: max(x for x, _ in ends) for place, ends in last.items()}
    middles = [upward.at(fmean(y for x, y in ends if x == furthest[place])) for place, ends in last.items()]
    for place, y in zip(last, apart(middles, 14, upward.end, upward.begin), strict=True):
        yield text(along.end + 8, y + 4, LETTERS[place], f"letter {colour(place)}")


def heat_map(name: str, axes: dict[str, list[Any]], found: Sequence[Ranked], width: int, what: str) -> str:
    """A square a configuration, by the values of two axes: the mean of the objective as a number and as a shade."""
    down, right = sorted(axes, key=lambda axis: -len(axes[axis]))
    left, top, high = 12 + 7 * min(20, max(len(show(value)) for value in axes[down])), 58, 44
    wide = min(150.0, max(52.0, (width - left) / len(axes[right])))
    size = (max(float(width), left + wide * len(axes[right])), top + high * len(axes[down]) + 4)
    shade = scale((one.one.mean for one in found if one.one.mean is not None), 0, SHADES - 0.01)
    body = [text(left, 16, f"{right} →", "strong"), text(2, 36, f"{down} ↓", "strong")]
    body += [
        text(left + wide * (n + 0.5), 52, fitting(show(value), wide), "", "middle")
        for n, value in enumerate(axes[right])
    ]
    body += [
        text(left - 8, top + high * (n + 0.5) + 4, fitting(show(value), left - 8), "", "end")
        for n, value in enumerate(axes[down])
    ]
    places = {axis: {as_key(value): n for n, value in enumerate(axes[axis])} for axis in axes}
    for one in found:
        column, row = (places[axis][as_key(one.one.values[axis])] for axis in (right, down))
        body += _square(one, left + wide * column, top + high * row, (wide - 3, high - 3), shade)
    means = [one.one.mean for one in found if one.one.mean is not None]
    said = f"Mean {what} by {down} (rows) and {right} (columns), {_range(means)}; the lowest is framed"
    return svg(name, size, f"Heat map of {what}", said, body)


def _range(means: Sequence[float]) -> str:
    return f"from {figure(min(means))} to {figure(max(means))}" if means else "none measured"


def _square(found: Ranked, x: float, y: float, size: tuple[float, float], shade: Scale) -> Iterator[str]:
    one, middle = found.one, (x + size[0] / 2, y + size[1] / 2)
    if one.mean is None:
        yield box(x, y, size, "hole", one.name)
        yield text(middle[0], middle[1] + 4, _why(one), "", "middle")
        return
    step, best = int(shade.at(one.mean)), found.place == 0
    yield box(x + 1, y + 1, (size[0] - 2, size[1] - 2), f"h{step}{' best' if best else ''}", _tip(one))
    words = (
        f"{LETTERS[found.place]}  {figure(one.mean)}" if found.place is not None and size[0] > 70 else figure(one.mean)
    )
    yield text(middle[0], middle[1] + 4, words, f"on{step}{' bold' if best else ''}", "middle")


def _why(one: Configuration) -> str:
    return " ".join(sorted({cell["status"] for cell in one.cells}))


def _tip(one: Configuration) -> str:
    return f"{one.name}: {'none' if one.mean is None else figure(one.mean)}, {len(one.scores)} cells"


def parallel(name: str, axes: dict[str, list[Any]], found: Sequence[Ranked], width: int, what: str) -> str:
    """A line a configuration through its value on each axis, ending at its mean objective."""
    drawn = [one for one in found if one.one.mean is not None]
    seen = {axis: {as_key(one.one.values[axis]) for one in drawn} for axis in axes}
    axes = {axis: [value for value in values if as_key(value) in seen[axis]] for axis, values in axes.items()}
    names = [*axes, what]
    left, right, top, height = 52, 46, 48, 330
    wide = max(float(width), left + right + 78.0 * (len(names) - 1))
    across = [left + (wide - left - right) * n / max(1, len(names) - 1) for n in range(len(names))]
    scales = {axis: _places(values, height - 14, top) for axis, values in axes.items()}
    upward = scale((one.one.mean for one in drawn if one.one.mean is not None), height - 14, top)
    body: list[str] = []
    for one in sorted(drawn, key=lambda each: -len(LETTERS) if each.place is None else -each.place):
        aside = (
            0.0 if one.place is None else STRAND * (one.place - len(LETTERS) // 2)
        )  # lines of equal values stay apart
        ys = [*(scales[axis][as_key(one.one.values[axis])] + aside for axis in axes), upward.at(one.one.mean or 0)]
        body.append(path(zip(across, ys, strict=True), f"curve {colour(one.place)}", _tip(one.one)))
    for n, axis in enumerate(axes):
        labels = {
            as_key(value): fitting(show(value), 0.7 * (across[1] - left) if n else left - 6) for value in axes[axis]
        }
        body += _upright(across[n], axis, n, (top, height), [(y, labels[key]) for key, y in scales[axis].items()])
    ticks = [(upward.at(value), number(value)) for value in upward.ticks(6)]
    body += _upright(across[-1], what, len(names) - 1, (top, height), ticks)
    body += _letters(drawn, across[-1], upward)
    said = f"{len(drawn)} configurations over {', '.join(axes)}; their mean {what} on the last axis, {_range([one.one.mean or 0 for one in drawn])}"
    return svg(name, (wide, height), f"Parallel coordinates of {what}", said, body)


def _places(values: Sequence[Any], begin: float, end: float) -> dict[str, float]:
    """Where each value of an axis lies: numbers to scale, others evenly apart."""
    if all(is_number(value) for value in values):
        measured = scale(values, begin, end)
        return {as_key(value): measured.at(value) for value in values}
    step = (end - begin) / max(1, len(values) - 1)
    return {as_key(value): begin + step * n for n, value in enumerate(in_order([*values]))}


def _upright(
    x: float, axis: str, n: int, ends: tuple[float, float], ticks: Sequence[tuple[float, str]]
) -> Iterator[str]:
    top, height = ends
    yield line(x, top, x, height - 14, "axis")
    anchor = "start" if n == 0 else "middle"
    yield text(2 if n == 0 else x, 14 + 16 * (n % 2), axis.rsplit(".", 1)[-1], "strong halo", anchor)
    free = height
    for y, words in sorted(ticks, reverse=True):
        yield line(x - 4, y, x, y, "axis")
        if y < free - 12:  # no room: the tick alone
            yield text(x - 7, y + 4, words, "halo", "end")
            free = y


def _letters(drawn: Sequence[Ranked], x: float, upward: Scale) -> Iterator[str]:
    lettered = [one for one in drawn if one.place is not None]
    middles = [upward.at(one.one.mean or 0) for one in lettered]
    for one, y in zip(lettered, apart(middles, 14, upward.end, upward.begin), strict=True):
        yield text(x + 10, y + 4, LETTERS[one.place or 0], f"letter {colour(one.place)}")


def seeds(name: str, found: Ranked, reach: Scale, what: str) -> str:
    """One configuration on a line: a ring a seed, a bar for the mean, a stroke for its interval, arrows where that leaves the page."""
    one, middle, css = found.one, 11.0, colour(found.place)
    body = [line(reach.begin, middle, reach.end, middle, "grid")]
    if one.interval:
        low, high = one.interval
        body.append(line(reach.at(low), middle, reach.at(high), middle, f"span {css}"))
        body += [
            _arrow(reach.at(end), middle, css, sign) for end, sign in ((low, -1), (high, 1)) if _beyond(end, reach)
        ]
    body += [dot(reach.at(score), middle, 3.2, f"ring {css}", figure(score)) for score in one.scores.values()]
    if one.mean is not None and len(one.scores) > 1:
        body.append(line(reach.at(one.mean), middle - 7, reach.at(one.mean), middle + 7, f"bar {css}"))
    return svg(
        name,
        (reach.end + 6, 22),
        f"{what} of {one.name}",
        f"seeds: {', '.join(map(figure, one.scores.values()))}",
        body,
    )


def reach(found: Sequence[Configuration]) -> Scale:
    """The line on which the seeds of all configurations lie."""
    scores = [score for one in found for score in one.scores.values()] or [0.0]
    low, high = min(scores), max(scores)
    if low > 0 and high / low >= 10:
        return Scale(low / 1.3, high * 1.3, 6, 194, True)
    more = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return Scale(low - more, high + more, 6, 194, False)


def _beyond(value: float, limits: Scale) -> bool:
    return not limits.low <= value <= limits.high


def _arrow(x: float, y: float, css: str, sign: int) -> str:
    return path([(x - 5 * sign, y - 5), (x, y), (x - 5 * sign, y + 5)], f"arrow {css}")
