"""Scales and basic shapes of the charts in reports, as SVG text; all text is escaped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

LOG_FROM = 10  # ratio of the largest to the smallest value from which on a scale is logarithmic
CHARACTER_WIDTH = 6.6  # pixels of an average character in the charts' font size


@dataclass(frozen=True)
class Scale:
    """Maps values low … high to pixels begin … end. `log`: equal ratios have equal lengths."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """Pixel of a value; values outside are clamped."""
        low, high = self._apply_log(self.low), self._apply_log(self.high)
        value = min(max(value, self.low), self.high)
        fraction = (self._apply_log(value) - low) / (high - low) if high > low else 0.5
        return self.begin + fraction * (self.end - self.begin)

    def compute_ticks(self, count: int) -> list[float]:
        """About `count` round values inside the scale, at least one."""
        if self.log:
            # Ticks per power of ten: 1, 2, 5; else 1, 3; else 1; else every second or fourth power, as `count` permits.
            powers, inside = (
                range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1),
                list[float](),
            )
            for digits, power_step in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
                ticks = [digit * 10.0**power for power in powers if power % power_step == 0 for digit in digits]
                inside = [value for value in ticks if self.low * 0.999 <= value <= self.high * 1.001]
                if len(inside) <= count + 1:
                    break
            if len(inside) > 1:
                return inside
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        min_step = span / count
        power = 10 ** math.floor(math.log10(min_step))
        # The smallest of 1, 2, 5, 10 times a power of ten that gives no more ticks than asked for.
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= min_step * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(multiple * step, 12) for multiple in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _apply_log(self, value: float) -> float:
        return math.log(value) if self.log else value


def build_scale(values: Iterable[float], begin: float, end: float) -> Scale:
    """The scale that holds all values; 0 if there are none."""
    all_values = [*values] or [0.0]
    low, high = min(all_values), max(all_values)
    return Scale(low, high, begin, end, low > 0 and high / low >= LOG_FROM)


def spread_positions(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to be `gap` apart, in their order, within low and high if possible."""
    by_position = sorted(range(len(positions)), key=lambda index: positions[index])
    spread = list(positions)
    # A pass upward opens the gaps, a pass downward moves back what is above `high`.
    for before, index in pairwise(by_position):
        spread[index] = max(spread[index], spread[before] + gap)
    limit = high
    for index in reversed(by_position):
        spread[index] = max(min(spread[index], limit), low)
        limit = spread[index] - gap
    return spread


def render_svg(name: str, size: tuple[float, float], title: str, description: str, body: Iterable[str]) -> str:
    """A drawing with a title and a description for screen readers. `name`: unique on the page."""
    width, height = size
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def draw_text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    """Text at a position; `anchor`: which end of it is there: start, middle, end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def draw_path(points: Iterable[tuple[float, float]], css: str, tip: str = "") -> str:
    """A line through points. `tip`: tooltip."""
    steps = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}" class="{css}">{_render_tip(tip)}</path>'


def draw_dot(x: float, y: float, radius: float, css: str, tip: str = "") -> str:
    """A disc."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}">{_render_tip(tip)}</circle>'


def draw_box(x: float, y: float, size: tuple[float, float], css: str, tip: str = "") -> str:
    """A rectangle of (width, height)."""
    width, height = size
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{css}">{_render_tip(tip)}</rect>'


def _render_tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def format_tick(value: float) -> str:
    """A number in as few characters as possible: 20 k, 3e-05, 0.25."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.4g}".replace("e-0", "e-")


def truncate_words(text: str, width: float) -> str:
    """Text cut to a width in pixels."""
    max_length = max(2, int(width / CHARACTER_WIDTH))
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
