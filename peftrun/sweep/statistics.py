"""What a sweep has shown and what may be chance: seeds are replicates, and configurations are compared over the seeds that they share."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from peftrun.formatting import format_figure, is_number
from peftrun.sweep.summary import SEED, make_key, parse_command

LEVEL = 0.95
ONE_SEED = (
    "One seed a configuration: nothing can be told apart from chance. "
    "Add seeds to the same command, such as seed=1,2,3: cells that are done are not run again."
)


@dataclass(frozen=True)
class Configuration:
    """Cells that agree in everything but the seed.

    Attributes:
        values: axis → value, the seed left out.
        cells: as sweep.json has them, whatever became of them.
        scores: seed (as text) → objective, of the cells that are completed.
        mean, deviation: of the scores; the deviation is the sample's, None of fewer than two.
        interval: 95 % interval of the mean; None of fewer than two.
    """

    values: dict[str, Any]
    cells: list[dict[str, Any]]
    scores: dict[str, float]
    mean: float | None
    deviation: float | None
    interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        """Its values as they are typed."""
        return (
            ", ".join(f"{key}={format_override_value(value)}" for key, value in self.values.items())
            or "the one configuration"
        )


@dataclass(frozen=True)
class PairedDifference:
    """Two configurations that differ in one axis, the lower mean first.

    Attributes:
        difference: mean over shared seeds of first − second: not above 0.
        interval: its 95 % interval; p: chance of one as large if there were none (two-sided); adjusted: p after Holm.
        family: comparisons in that axis, which are corrected together.
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
        """Whether the difference is more than chance, all comparisons of its axis counted."""
        return self.adjusted < 1 - LEVEL

    def format_sentence(self, objective: str) -> str:
        """What it says in words."""
        one, other = (
            f"{self.axis}={format_override_value(side.values[self.axis])}" for side in (self.first, self.second)
        )
        rest = [f"{key}={format_override_value(value)}" for key, value in self.first.values.items() if key != self.axis]
        low, high = (format_figure(end) for end in self.interval)
        alone = self.interval[1] < 0  # told apart, were it the only comparison
        verdict = f"{one} {'is' if self.is_significant else 'may be'} better than {other}"
        if not alone and not self.is_significant:
            verdict = f"no difference shown between {other} and {one}"
        counted = (
            f"; one of {self.family} comparisons, which together leave it open"
            if alone and not self.is_significant
            else ""
        )
        where = f"{' with ' if rest else ''}{', '.join(rest)} at this budget"
        span = (
            f"difference of {objective} {format_figure(self.difference)}, {100 * LEVEL:.0f} % interval {low} to {high}"
        )
        return f"{verdict}{where} ({span}, {self.seeds} seeds{counted})"


@dataclass(frozen=True)
class Findings:
    """What may be said about a sweep.

    Attributes:
        axes: axis → its values, the seed left out; what follows from other axes is none.
        cells: as sweep.json has them, but their values are those of the axes and the seed.
        configurations: lowest mean first; those without a completed cell last.
        differences: those of one axis behind each other, surest first.
        left_out: cells that count for nothing, with their reason.
        note: what the number of seeds allows to say; empty if there are enough.
    """

    axes: dict[str, list[Any]]
    cells: list[dict[str, Any]]
    configurations: list[Configuration]
    differences: list[PairedDifference]
    left_out: list[str]
    note: str


def analyze_sweep(summary: dict[str, Any]) -> Findings:
    """What may be said about the sweep that sweep.json describes. Only completed cells count."""
    texts = [parse_command(cell["command"]) for cell in summary["cells"]]
    groups = _find_chosen_groups(texts, summary["axes"])
    cells = [
        {**cell, "values": cell["values"] | {name: text.get(name) for name in groups}}
        for cell, text in zip(summary["cells"], texts, strict=True)
    ]
    axes = _find_axes(cells, [*groups, *summary["axes"]], {key for text in texts for key in text})
    kept = [*axes, *([SEED] if SEED in summary["axes"] else [])]
    cells = [{**cell, "values": {key: cell["values"].get(key) for key in kept}} for cell in cells]
    found = sorted(_build_configurations(cells, axes), key=lambda one: math.inf if one.mean is None else one.mean)
    values = {axis: list({make_key(one.values[axis]): one.values[axis] for one in found}.values()) for axis in axes}
    ordered = {axis: sort_values(items) for axis, items in values.items()}
    differences = [each for axis in axes for each in _adjust_differences(list(_compare_pairs(axis, found)))]
    repeated = any(len(one.scores) > 1 for one in found)
    return Findings(ordered, cells, found, differences, _list_left_out(cells), "" if repeated else ONE_SEED)


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two values or more: mean ± t s/√n, with t of Student's distribution at n - 1.

    Source: Student 1908, "The probable error of a mean", Biometrika 6(1); NIST/SEMATECH e-Handbook of Statistical
    Methods, 1.3.5.2 (confidence limits for the mean). Of paired differences: the same, 1.3.5.3's paired case.
    """
    from scipy.special import stdtrit

    middle, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    return middle - half, middle + half


def compute_paired_t_pvalue(differences: Sequence[float]) -> float:
    """Two-sided p of Student's paired t test: how often chance alone gives a mean as far from 0, where no difference is.

    Source: t = mean / (s/√n) at n - 1 degrees of freedom (Student 1908, as in `interval`).
    """
    from scipy.special import stdtr

    middle, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 0.0 if middle else 1.0
    return 2 * float(stdtr(len(differences) - 1, -abs(middle / error)))


def adjust_holm(chances: Sequence[float]) -> list[float]:
    """Each p corrected for the others: the k-th smallest of m times m - k + 1, never below a smaller one's, at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2).
    """
    adjusted, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = highest
    return adjusted


def format_override_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(format_override_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def sort_values(values: list[Any]) -> list[Any]:
    """Numbers ascending; what is no number in alphabetical order behind them."""
    return sorted(values, key=lambda one: (0, one, "") if is_number(one) else (1, 0, format_override_value(one)))


def label_cell(cell: dict[str, Any]) -> str:
    """A cell in words: its place in the sweep and its values."""
    values = ", ".join(f"{key}={format_override_value(value)}" for key, value in cell["values"].items())
    return f"cell {', '.join(map(str, cell['numbers']))}{f' ({values})' if values else ''}"


def _find_chosen_groups(texts: list[dict[str, str]], axes: dict[str, Any]) -> list[str]:
    """Config groups from which cells have chosen differently, such as lora=dora: an axis of which many keys follow."""
    below = {axis.split(".")[0] for axis in axes} | {"experiment"}
    names = dict.fromkeys(key for one in texts for key in one if key in below and key not in axes)
    return [name for name in names if len({one.get(name) for one in texts}) > 1]


def _find_axes(cells: list[dict[str, Any]], keys: list[str], asked: set[str]) -> list[str]:
    """Keys that were typed, and those that do not follow from them; the seed left out."""
    found = [key for key in keys if key in asked]
    for key in keys:
        if key not in found and not _follows_from(key, [*found, SEED], cells):
            found.append(key)
    return [key for key in found if key != SEED]


def _follows_from(key: str, others: list[str], cells: list[dict[str, Any]]) -> bool:
    """Whether a key's value is the same wherever those of the others are."""
    seen: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        seen[make_key([cell["values"].get(other) for other in others])].add(make_key(cell["values"].get(key)))
    return all(len(values) == 1 for values in seen.values())


def _build_configurations(cells: list[dict[str, Any]], axes: list[str]) -> Iterator[Configuration]:
    together: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        together[make_key([cell["values"].get(axis) for axis in axes])].append(cell)
    for group in together.values():
        scores = {make_key(cell["values"].get(SEED)): float(cell["objective"]) for cell in group if is_counted(cell)}
        several = len(scores) > 1
        yield Configuration(
            {axis: group[0]["values"].get(axis) for axis in axes},
            group,
            scores,
            statistics.fmean(scores.values()) if scores else None,
            statistics.stdev(scores.values()) if several else None,
            compute_interval([*scores.values()]) if several else None,
        )


def is_counted(cell: dict[str, Any]) -> bool:
    """Whether a cell's objective says something: it is completed and was measured."""
    return cell["status"] == "completed" and cell["objective"] is not None


def _list_left_out(cells: list[dict[str, Any]]) -> list[str]:
    reasons = {
        "stopped": "ended early, so its budget was another",
        "completed": "has no objective",
        "interrupted": "the same command goes on with it",
        "not started": "the same command begins it",
    }
    return [
        f"{label_cell(cell)}: {cell['status']}{f', {why}' if (why := cell['error'] or reasons.get(cell['status'])) else ''}"
        for cell in cells
        if not is_counted(cell)
    ]


def _compare_pairs(axis: str, found: list[Configuration]) -> Iterator[PairedDifference]:
    """All pairs that agree in every other axis and share two seeds or more; not yet corrected."""
    alike: dict[str, list[Configuration]] = defaultdict(list)
    for one in found:
        alike[make_key([value for key, value in one.values.items() if key != axis])].append(one)
    for one, other in (pair for group in alike.values() for pair in combinations(group, 2)):
        apart = [one.scores[seed] - other.scores[seed] for seed in one.scores if seed in other.scores]
        if len(apart) > 1:
            yield _build_difference(axis, one, other, apart)


def _build_difference(axis: str, one: Configuration, other: Configuration, apart: list[float]) -> PairedDifference:
    if statistics.fmean(apart) > 0:
        one, other, apart = other, one, [-each for each in apart]
    p = compute_paired_t_pvalue(apart)
    return PairedDifference(axis, one, other, statistics.fmean(apart), compute_interval(apart), len(apart), p, p, 1)


def _adjust_differences(found: list[PairedDifference]) -> list[PairedDifference]:
    adjusted = adjust_holm([one.p for one in found])
    corrected = [replace(one, adjusted=p, family=len(found)) for one, p in zip(found, adjusted, strict=True)]
    return sorted(corrected, key=lambda one: (one.adjusted, one.difference))
