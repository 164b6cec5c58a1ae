"""The smallest set of overrides that leads to a configuration, from what is composed by default or from another run's. Light.

Options of groups are chosen first (the one that comes nearest), then what still differs is set value by value; every choice is kept only
where it saves overrides. What comes out is composed again, and is exactly what was asked for.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from peftrun.composition import compose
from peftrun.composition.composer import Compositions, plain
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.errors import ConfigError

Values = dict[str, Any]
EXPERIMENT, ADAPTER = "experiment", "adapter"
TRIED = 4  # options of a group, and experiments, that are composed to see what they leave to set
MANY = 40  # overrides that are not tried one by one
NOTHING = object()  # no such key


def smallest(target: Values, search_path: Sequence[str] = (), start: Values | None = None) -> list[str]:
    """The fewest overrides that compose the resolved values `target`; exactly them.

    Args:
        search_path: where options are looked for beside peftrun's own.
        start: another run's values. What comes out then leads from them to `target`: added to a command of that run, by `added`.

    Raises: ConfigError: no override leads there.
    """
    return between(Compositions(search_path), search_path, target, start)


def between(
    compositions: Compositions,
    search_path: Sequence[str],
    target: Values,
    start: Values | None = None,
    typed: Sequence[str] = (),
) -> list[str]:
    """The same, with compositions at hand. `typed`: of options that save as many overrides, those are taken that stand in it."""
    before = between(compositions, search_path, start) if start is not None else []
    search = _Search(compositions, before, target, typed)
    for look in (search.best, search.values_alone):
        found = look()
        if found is not None and _leads(added(before, found), search_path, target):
            return found
    raise ConfigError("config: holds values that cannot be typed; keep the run folder's config.yaml")


def _leads(overrides: Sequence[str], search_path: Sequence[str], target: Values) -> bool:
    """Whether the command line composes exactly this."""
    try:
        return same(plain(compose.compose_run(overrides, search_path).cfg), target)
    except ConfigError:
        return False


def added(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """A command with more overrides. Where an option of a group is chosen, what was typed for that group before is gone."""
    chosen = {text.partition("=")[0] for text in more} & {*GROUPS}
    return [text for text in before if _group_of(text) not in chosen] + list(more)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same to a run: 1 is 1.0 but not `true`, a name that is a number is its text."""
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({str(key): item for key, item in values.items()} for values in (one, other))
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def differing(one: Values, other: Values) -> dict[str, tuple[Any, Any]]:
    """Full key → value of one, value of the other, where they differ; None also stands for a key that is not there, which differs from null in nothing."""
    mine, theirs = config.flatten(one), config.flatten(other)
    return {
        key: (mine.get(key), theirs.get(key)) for key in {**mine, **theirs} if not same(mine.get(key), theirs.get(key))
    }


class _Search:
    """Looks for few overrides that lead to `target` when they are added to `before`."""

    def __init__(self, compositions: Compositions, before: Sequence[str], target: Values, typed: Sequence[str]) -> None:
        self.compositions, self.before, self.target, self.typed = compositions, before, target, typed

    def best(self) -> list[str] | None:
        """The fewest found; of equally many, the shortest to type. None: nothing leads there."""
        found = self._from([])
        if found is None or len(found) > 1:
            starts = [[override_syntax.override(EXPERIMENT, name)] for name in self._helpful_experiments()]
            alone = (start for start in starts if same(self._composed(start), self.target))
            found = next(alone, None) or min([found, *map(self._from, starts)], key=_cost)
        return found and self._needed(found)

    def values_alone(self) -> list[str] | None:
        """Every value that differs, and no choice."""
        return self._whole([])

    def _helpful_experiments(self) -> list[str]:
        """Those that set more of what is missing, their choices counted in, than of what must be set otherwise then."""
        now = self._composed([]) or {}
        gains = {name: self._gain(name, now) for name in self.compositions.options(EXPERIMENT)}
        return sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])[:TRIED]

    def _gain(self, experiment: str, values: Values) -> int:
        choices, body = self.compositions.body(f"{EXPERIMENT}/{experiment}")
        now, target = config.flatten(values), config.flatten(self.target)
        gain = sum(self._is_nearer(group, option, values) for group, option in choices.items())
        for key, value in config.flatten(body).items():
            if key in target and not same(now.get(key, NOTHING), target[key]):
                gain += same(value, target[key])
            elif not same(value, target.get(key, NOTHING)):
                gain -= 1
        return gain

    def _is_nearer(self, group: str, option: str, values: Values) -> bool:
        """Whether an option has more of the target's values than what is chosen now."""
        if group not in GROUPS:
            return True
        want = config.flatten(self.target.get(group))
        there = _apart(config.flatten(values.get(group)), want)
        return len(_apart(config.flatten(self.compositions.option(group, option)), want)) < len(there)

    def _from(self, start: list[str]) -> list[str] | None:
        values, choices = self._composed(start), list(start)
        for group in GROUPS if values else ():
            assert values
            choices += self._chosen(group, values, start)
        return self._pruned(choices)

    def _chosen(self, group: str, values: Values, start: list[str]) -> list[str]:
        """The option that comes nearest, if choosing it may save overrides."""
        have, want = values.get(group), self.target.get(group)
        if not isinstance(want, dict) or same(have, want):
            return []
        missing, costs = _count(have, want), {}
        for name in self._promising(group, config.flatten(have), config.flatten(want)):
            choice = override_syntax.override(group, name)
            found = self._composed([*start, choice])
            costs[choice] = 1 + _count(found[group], want) if found else math.inf
        nearest = min(costs, key=lambda choice: (costs[choice], choice not in self.typed, len(choice)), default="")
        return [nearest] if nearest and costs[nearest] <= missing else []

    def _promising(self, group: str, have: Values, want: Values) -> list[str]:
        """Options that bring most of what is missing; then those that change least of what is there, which an experiment may set back."""
        ranks, missing = {}, _apart(have, want)
        for name in self.compositions.options(group):
            wrong = _apart(config.flatten(self.compositions.option(group, name)), want)
            if len(wrong & missing) < len(missing):
                ranks[name] = (len(wrong & missing), len(wrong), len(name), name)
        return sorted(ranks, key=lambda name: ranks[name])[:TRIED]

    def _pruned(self, choices: list[str]) -> list[str] | None:
        """The choices that save overrides, and the values that are left to set."""
        best = self._whole(choices)
        for choice in choices:
            without = [text for text in choices if text != choice]
            found = self._whole(without)
            if _cost(found) <= _cost(best):
                choices, best = without, found
        return best

    def _whole(self, choices: list[str]) -> list[str] | None:
        """The choices, and what they leave to set; None if they cannot be composed."""
        values = self._composed(choices)
        return None if values is None else [*choices, *_steps(values, self.target, "")]

    def _needed(self, found: list[str]) -> list[str]:
        """Without those that follow from others, as a value does that is taken from another key."""
        for text in found if len(found) <= MANY else ():
            without = [one for one in found if one != text]
            if same(self._composed(without), self.target):
                found = without
        return found

    def _composed(self, more: list[str]) -> Values | None:
        try:
            return self.compositions.compose(added(self.before, more))
        except (*compose.REFUSALS, ConfigError):
            return None


def _apart(one: Values, other: Values) -> set[str]:
    """Full keys whose values differ."""
    return {key for key in {**one, **other} if not same(one.get(key, NOTHING), other.get(key, NOTHING))}


def _cost(overrides: Sequence[str] | None) -> tuple[float, int]:
    return (math.inf, 0) if overrides is None else (len(overrides), sum(map(len, overrides)))


def _count(values: Any, target: Any) -> int:
    return sum(1 for _ in _steps(values, target, "group"))


def _group_of(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition(".")[0]


def _steps(have: Any, want: Any, key: str) -> Iterator[str]:
    """The overrides that make `want` of `have`."""
    if same(have, want):
        return
    if key == ADAPTER:
        yield _adapter(have, want)
        return
    if not isinstance(have, dict) or not isinstance(want, dict):
        yield override_syntax.override(key, want)
        return
    have, want = ({str(name): item for name, item in values.items()} for values in (have, want))
    changed = [name for name in {**have, **want} if not same(have.get(name, NOTHING), want.get(name, NOTHING))]
    if key and (not want or not all(map(override_syntax.is_name, changed))):
        yield f"{key}={override_syntax.whole(want)}"
        return
    if key and not have:
        yield override_syntax.override(key, want, "++")
        return
    for name in changed:
        yield from _step(have.get(name, NOTHING), want.get(name, NOTHING), f"{key}.{name}" if key else name)


def _adapter(have: Values, want: Values) -> str:
    """This key takes a path, or a mapping, and is a mapping afterwards."""
    if not have or not want or want.keys() == {"default"}:
        return override_syntax.override(ADAPTER, want.get("default") if want.keys() <= {"default"} else want)
    return f"{ADAPTER}={override_syntax.whole(want)}"


def _step(have: Any, want: Any, key: str) -> Iterator[str]:
    if want is NOTHING:
        yield f"~{key}"
    elif have is NOTHING:
        yield override_syntax.override(key, want, "++")
    else:
        yield from _steps(have, want, key)
