"""Scales and the few shapes that the charts of reports are drawn with: SVG as text, every word escaped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

LOG_FROM = 10  # numbers that span as many times their smallest are shown on a logarithmic scale


@dataclass(frozen=True)
class Scale:
    """From a value to a place on the page. `log`: equal ratios are equal lengths."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The place of a value; values outside lie at the nearer end."""
        low, high = self._apply_log(self.low), self._apply_log(self.high)
        value = min(max(value, self.low), self.high)
        part = (self._apply_log(value) - low) / (high - low) if high > low else 0.5
        return self.begin + part * (self.end - self.begin)

    def compute_ticks(self, wanted: int) -> list[float]:
        """Round values inside the scale, about as many as wanted, at least one."""
        found = self._make_decade_ticks(wanted) if self.log else []
        return found if len(found) > 1 else self._make_even_ticks(wanted)

    def _apply_log(self, value: float) -> float:
        return math.log(value) if self.log else value

    def _make_even_ticks(self, wanted: int) -> list[float]:
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / wanted
        power = 10 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(place * step, 12) for place in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _make_decade_ticks(self, wanted: int) -> list[float]:
        """1, 2, 5 of each power of ten, or 1 and 3, or 1 alone, or every so many powers: as many as there is room for."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
            found = [digit * 10.0**power for power in powers if power % every == 0 for digit in digits]
            inside = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(inside) <= wanted + 1:
                return inside
        return inside


def build_scale(values: Iterable[float], begin: float, end: float) -> Scale:
    """The scale on which all values have a place."""
    known = [*values] or [0.0]
    low, high = min(known), max(known)
    return Scale(low, high, begin, end, low > 0 and high / low >= LOG_FROM)


def spread_positions(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved as little as needed to be a gap apart, in their order, inside low and high if there is room."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = list(places)
    for before, index in pairwise(order):
        found[index] = max(found[index], found[before] + gap)
    limit = high
    for index in reversed(order):
        found[index] = max(min(found[index], limit), low)
        limit = found[index] - gap
    return found


def render_svg(name: str, size: tuple[float, float], title: str, description: str, body: Iterable[str]) -> str:
    """A drawing that says in words what it shows. `name`: unique on the page."""
    width, height = size
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def draw_text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    """Words at a place; `anchor`: which end of them is there: start, middle, end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def draw_path(points: Iterable[tuple[float, float]], css: str, tip: str = "") -> str:
    """A line through points. `tip`: what is told when the pointer rests on it."""
    steps = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}" class="{css}">{_render_tip(tip)}</path>'


def draw_dot(x: float, y: float, radius: float, css: str, tip: str = "") -> str:
    """A disc."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}">{_render_tip(tip)}</circle>'


def draw_box(x: float, y: float, size: tuple[float, float], css: str, tip: str = "") -> str:
    """A rectangle of a width and a height."""
    width, height = size
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{css}">{_render_tip(tip)}</rect>'


def _render_tip(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def format_tick(value: float) -> str:
    """A number as short as a tick can be: 20 k, 3e-05, 0.25."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.4g}".replace("e-0", "e-")


def truncate_words(words: str, room: float) -> str:
    """Words cut to what has room in so many pixels."""
    most = max(2, int(room / 6.6))
    return words if len(words) <= most else f"{words[: most - 1]}…"
