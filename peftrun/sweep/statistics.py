"""Statistics of a sweep: seeds are replicates, and configurations are compared over the seeds that they share (paired t-tests, Holm)."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from peftrun.formatting import format_figure, format_value, is_number
from peftrun.sweep.summary import SEED, make_key, parse_command

LEVEL = 0.95  # confidence level of all intervals
ONE_SEED = (
    "One seed per configuration: no difference can be distinguished from chance. "
    "Add seeds to the same command, such as seed=1,2,3: cells that are done are not run again."
)


@dataclass(frozen=True)
class Configuration:
    """Cells that agree in everything but the seed.

    Attributes:
        values: axis → value, without the seed.
        cells: as in sweep.json, of any status.
        scores: seed (as text) → objective of the completed cells.
        mean, deviation: of the scores; the sample standard deviation, None for fewer than two.
        interval: 95 % confidence interval of the mean; None for fewer than two.
    """

    values: dict[str, Any]
    cells: list[dict[str, Any]]
    scores: dict[str, float]
    mean: float | None
    deviation: float | None
    interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        """Its values as overrides."""
        return (
            ", ".join(f"{key}={format_value(value)}" for key, value in self.values.items()) or "the one configuration"
        )


@dataclass(frozen=True)
class PairedDifference:
    """Two configurations that differ in one axis, the lower mean first.

    Attributes:
        difference: mean over shared seeds of first − second: not above 0.
        interval: its 95 % confidence interval.
        p: two-sided p-value of the paired t-test.
        adjusted: p after Holm's correction.
        family: number of comparisons in that axis, which are corrected together.
    """

    axis: str
    first: Configuration
    second: Configuration
    difference: float
    interval: tuple[float, float]
    seeds: int
    p: float
    adjusted: float
    family: int

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at 5 %, corrected for all comparisons of its axis."""
        return self.adjusted < 1 - LEVEL

    def format_sentence(self, objective: str) -> str:
        """The result as a sentence."""
        better, worse = (f"{self.axis}={format_value(side.values[self.axis])}" for side in (self.first, self.second))
        shared = [f"{key}={format_value(value)}" for key, value in self.first.values.items() if key != self.axis]
        low, high = (format_figure(end) for end in self.interval)
        # The interval is not corrected: it may exclude 0 where Holm's correction leaves the difference open.
        is_open = self.interval[1] < 0 and not self.is_significant
        verdict, note = f"no difference shown between {worse} and {better}", ""
        if self.is_significant:
            verdict = f"{better} is better than {worse}"
        elif is_open:
            verdict = f"{better} may be better than {worse}"
            note = f"; one of {self.family} comparisons, not significant after correction"
        fixed = f"{' with ' if shared else ''}{', '.join(shared)} at this budget"
        span = (
            f"difference of {objective} {format_figure(self.difference)}, {100 * LEVEL:.0f} % interval {low} to {high}"
        )
        return f"{verdict}{fixed} ({span}, {self.seeds} seeds{note})"


@dataclass(frozen=True)
class Findings:
    """Statistics of a sweep.

    Attributes:
        axes: axis → its values, without the seed; a key whose value follows from other axes is not an axis.
        cells: as in sweep.json, but with the values of the axes and the seed only.
        configurations: lowest mean first; those without a completed cell last.
        differences: by axis, smallest adjusted p first.
        left_out: lines about the cells that are not counted, with the reason.
        note: what too few seeds mean for the comparisons; empty if there are enough.
    """

    axes: dict[str, list[Any]]
    cells: list[dict[str, Any]]
    configurations: list[Configuration]
    differences: list[PairedDifference]
    left_out: list[str]
    note: str


def analyze_sweep(summary: dict[str, Any]) -> Findings:
    """Statistics of the sweep that sweep.json describes. Only completed cells count."""
    texts = [parse_command(cell["command"]) for cell in summary["cells"]]
    # A config group from which cells chose differently (lora=dora) is one axis; the keys that it sets follow from it.
    candidates = {axis.split(".")[0] for axis in summary["axes"]} | {"experiment"}
    names = dict.fromkeys(key for text in texts for key in text if key in candidates and key not in summary["axes"])
    groups = [name for name in names if len({text.get(name) for text in texts}) > 1]
    cells = [
        {**cell, "values": cell["values"] | {name: text.get(name) for name in groups}}
        for cell, text in zip(summary["cells"], texts, strict=True)
    ]
    axes = _find_axes(cells, [*groups, *summary["axes"]], {key for text in texts for key in text})
    keys = [*axes, *([SEED] if SEED in summary["axes"] else [])]
    cells = [{**cell, "values": {key: cell["values"].get(key) for key in keys}} for cell in cells]
    configurations = sorted(
        _build_configurations(cells, axes),
        key=lambda configuration: math.inf if configuration.mean is None else configuration.mean,
    )
    axis_values = {
        axis: sort_values(
            list({make_key(value): value for value in (each.values[axis] for each in configurations)}.values())
        )
        for axis in axes
    }
    differences = [difference for axis in axes for difference in _compare_axis(axis, configurations)]
    has_replicates = any(len(configuration.scores) > 1 for configuration in configurations)
    note = "" if has_replicates else ONE_SEED
    return Findings(axis_values, cells, configurations, differences, _list_left_out(cells), note)


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of two values or more: mean ± t s/√n, with t of Student's distribution at n - 1.

    Source: Student 1908, "The probable error of a mean", Biometrika 6(1); NIST/SEMATECH e-Handbook of Statistical
    Methods, 1.3.5.2 (confidence limits for the mean). The same for paired differences: 1.3.5.3, paired case.
    """
    from scipy.special import stdtrit

    mean, standard_error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half_width = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * standard_error
    return mean - half_width, mean + half_width


def compute_paired_t_pvalue(differences: Sequence[float]) -> float:
    """Two-sided p-value of Student's paired t-test: probability of a mean at least as far from 0 if there is no difference.

    Source: t = mean / (s/√n) at n - 1 degrees of freedom (Student 1908, as in `compute_interval`).
    """
    from scipy.special import stdtr

    mean, standard_error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if standard_error == 0:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean / standard_error)))


def adjust_holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m p-values times m - k + 1, kept monotone, at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2).
    """
    adjusted, highest = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda index: pvalues[index])):
        highest = max(highest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = highest
    return adjusted


def sort_values(values: list[Any]) -> list[Any]:
    """Numbers ascending, then the rest in alphabetical order."""
    return sorted(values, key=lambda value: (0, value, "") if is_number(value) else (1, 0, format_value(value)))


def label_cell(cell: dict[str, Any]) -> str:
    """Label of a cell: its numbers in the sweep and its values."""
    values = ", ".join(f"{key}={format_value(value)}" for key, value in cell["values"].items())
    return f"cell {', '.join(map(str, cell['numbers']))}{f' ({values})' if values else ''}"


def _find_axes(cells: list[dict[str, Any]], keys: list[str], typed: set[str]) -> list[str]:
    """Keys on the command line, and those whose value does not follow from them; without the seed."""
    axes = [key for key in keys if key in typed]
    for key in keys:
        if key in axes:
            continue
        # A value follows if cells that agree in the axes and the seed agree in it.
        values_by_others: dict[str, set[str]] = defaultdict(set)
        for values in (cell["values"] for cell in cells):
            others = make_key([values.get(other) for other in [*axes, SEED]])
            values_by_others[others].add(make_key(values.get(key)))
        if any(len(values) > 1 for values in values_by_others.values()):
            axes.append(key)
    return [key for key in axes if key != SEED]


def _build_configurations(cells: list[dict[str, Any]], axes: list[str]) -> Iterator[Configuration]:
    replicates: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        replicates[make_key([cell["values"].get(axis) for axis in axes])].append(cell)
    for group in replicates.values():
        scores = {make_key(cell["values"].get(SEED)): float(cell["objective"]) for cell in group if is_counted(cell)}
        has_spread = len(scores) > 1
        yield Configuration(
            {axis: group[0]["values"].get(axis) for axis in axes},
            group,
            scores,
            mean=statistics.fmean(scores.values()) if scores else None,
            deviation=statistics.stdev(scores.values()) if has_spread else None,
            interval=compute_interval([*scores.values()]) if has_spread else None,
        )


def is_counted(cell: dict[str, Any]) -> bool:
    """Whether a cell's objective counts: it is completed and has one. A cell stopped early had a smaller budget."""
    return cell["status"] == "completed" and cell["objective"] is not None


def _list_left_out(cells: list[dict[str, Any]]) -> list[str]:
    reasons = {
        "stopped": "ended early, with a smaller budget",
        "completed": "has no objective",
        "interrupted": "the same command continues it",
        "not started": "the same command starts it",
    }
    lines = []
    for cell in cells:
        if not is_counted(cell):
            reason = cell["error"] or reasons.get(cell["status"])
            lines.append(f"{label_cell(cell)}: {cell['status']}{f', {reason}' if reason else ''}")
    return lines


def _compare_axis(axis: str, configurations: list[Configuration]) -> list[PairedDifference]:
    """All pairs that agree in every other axis and share two seeds or more, smallest adjusted p first."""
    peers: dict[str, list[Configuration]] = defaultdict(list)
    for configuration in configurations:
        peers[make_key([value for key, value in configuration.values.items() if key != axis])].append(configuration)
    differences = []
    for first, second in (pair for group in peers.values() for pair in combinations(group, 2)):
        deltas = [first.scores[seed] - second.scores[seed] for seed in first.scores if seed in second.scores]
        if len(deltas) < 2:
            continue
        if statistics.fmean(deltas) > 0:  # the lower mean first
            first, second, deltas = second, first, [-delta for delta in deltas]  # noqa: PLW2901
        p, interval = compute_paired_t_pvalue(deltas), compute_interval(deltas)
        differences.append(
            PairedDifference(
                axis, first, second, statistics.fmean(deltas), interval, len(deltas), p, adjusted=p, family=1
            )
        )
    # Each axis is a question of its own, so its comparisons are one family.
    adjusted = adjust_holm([difference.p for difference in differences])
    corrected = [
        replace(difference, adjusted=p, family=len(differences))
        for difference, p in zip(differences, adjusted, strict=True)
    ]
    return sorted(corrected, key=lambda difference: (difference.adjusted, difference.difference))
