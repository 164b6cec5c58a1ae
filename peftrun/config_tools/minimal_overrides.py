"""The smallest set of overrides that leads to a configuration, from what is composed by default or from another run's. Light.

Options of groups are chosen first (the one that comes nearest), then what still differs is set value by value; every choice is kept only
where it saves overrides. What comes out is composed again, and is exactly what was asked for.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from peftrun.composition import compose
from peftrun.composition.composer import Composer, to_plain_values
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.errors import ConfigError

Values = dict[str, Any]
EXPERIMENT, ADAPTER_KEY = "experiment", "adapter"
MAX_TRIED_OPTIONS = 4  # options of a group, and experiments, that are composed to see what they leave to set
MAX_PRUNED_OVERRIDES = 40  # overrides that are not tried one by one
ABSENT = object()  # no such key


def find_minimal_overrides(target: Values, search_path: Sequence[str] = (), start: Values | None = None) -> list[str]:
    """The fewest overrides that compose the resolved values `target`; exactly them.

    Args:
        search_path: where options are looked for beside peftrun's own.
        start: another run's values. What comes out then leads from them to `target`: added to a command of that run, by `added`.

    Raises: ConfigError: no override leads there.
    """
    return search_overrides(Composer(search_path), search_path, target, start)


def search_overrides(
    compositions: Composer,
    search_path: Sequence[str],
    target: Values,
    start: Values | None = None,
    typed: Sequence[str] = (),
) -> list[str]:
    """The same, with compositions at hand. `typed`: of options that save as many overrides, those are taken that stand in it."""
    before = search_overrides(compositions, search_path, start) if start is not None else []
    search = _OverrideSearch(compositions, before, target, typed)
    for look in (search.find_best, search.set_every_value):
        found = look()
        if found is not None and _composes_target(add_overrides(before, found), search_path, target):
            return found
    raise ConfigError("config: holds values that cannot be typed; keep the run folder's config.yaml")


def _composes_target(overrides: Sequence[str], search_path: Sequence[str], target: Values) -> bool:
    """Whether the command line composes exactly this."""
    try:
        return is_same_value(to_plain_values(compose.compose_run(overrides, search_path).cfg), target)
    except ConfigError:
        return False


def add_overrides(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """A command with more overrides. Where an option of a group is chosen, what was typed for that group before is gone."""
    chosen = {text.partition("=")[0] for text in more} & {*GROUPS}
    return [text for text in before if _parse_group(text) not in chosen] + list(more)


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two plain values are the same to a run: 1 is 1.0 but not `true`, a name that is a number is its text."""
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({str(key): item for key, item in values.items()} for values in (one, other))
        return one.keys() == other.keys() and all(is_same_value(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def diff_values(one: Values, other: Values) -> dict[str, tuple[Any, Any]]:
    """Full key → value of one, value of the other, where they differ; None also stands for a key that is not there, which differs from null in nothing."""
    mine, theirs = config.flatten_keys(one), config.flatten_keys(other)
    return {
        key: (mine.get(key), theirs.get(key))
        for key in {**mine, **theirs}
        if not is_same_value(mine.get(key), theirs.get(key))
    }


class _OverrideSearch:
    """Looks for few overrides that lead to `target` when they are added to `before`."""

    def __init__(self, compositions: Composer, before: Sequence[str], target: Values, typed: Sequence[str]) -> None:
        self.compositions, self.before, self.target, self.typed = compositions, before, target, typed

    def find_best(self) -> list[str] | None:
        """The fewest found; of equally many, the shortest to type. None: nothing leads there."""
        found = self._search_from([])
        if found is None or len(found) > 1:
            starts = [[override_syntax.quote_override(EXPERIMENT, name)] for name in self._rank_experiments()]
            alone = (start for start in starts if is_same_value(self._compose_values(start), self.target))
            found = next(alone, None) or min([found, *map(self._search_from, starts)], key=_compute_cost)
        return found and self._drop_implied(found)

    def set_every_value(self) -> list[str] | None:
        """Every value that differs, and no choice."""
        return self._whole([])

    def _rank_experiments(self) -> list[str]:
        """Those that set more of what is missing, their choices counted in, than of what must be set otherwise then."""
        now = self._compose_values([]) or {}
        gains = {name: self._compute_gain(name, now) for name in self.compositions.options(EXPERIMENT)}
        return sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])[:MAX_TRIED_OPTIONS]

    def _compute_gain(self, experiment: str, values: Values) -> int:
        choices, body = self.compositions.body(f"{EXPERIMENT}/{experiment}")
        now, target = config.flatten_keys(values), config.flatten_keys(self.target)
        gain = sum(self._is_nearer(group, option, values) for group, option in choices.items())
        for key, value in config.flatten_keys(body).items():
            if key in target and not is_same_value(now.get(key, ABSENT), target[key]):
                gain += is_same_value(value, target[key])
            elif not is_same_value(value, target.get(key, ABSENT)):
                gain -= 1
        return gain

    def _is_nearer(self, group: str, option: str, values: Values) -> bool:
        """Whether an option has more of the target's values than what is chosen now."""
        if group not in GROUPS:
            return True
        want = config.flatten_keys(self.target.get(group))
        there = _find_differing_keys(config.flatten_keys(values.get(group)), want)
        return len(_find_differing_keys(config.flatten_keys(self.compositions.option(group, option)), want)) < len(
            there
        )

    def _search_from(self, start: list[str]) -> list[str] | None:
        values, choices = self._compose_values(start), list(start)
        for group in GROUPS if values else ():
            assert values
            choices += self._chosen(group, values, start)
        return self._prune_choices(choices)

    def _chosen(self, group: str, values: Values, start: list[str]) -> list[str]:
        """The option that comes nearest, if choosing it may save overrides."""
        have, want = values.get(group), self.target.get(group)
        if not isinstance(want, dict) or is_same_value(have, want):
            return []
        missing, costs = _count_overrides(have, want), {}
        for name in self._rank_options(group, config.flatten_keys(have), config.flatten_keys(want)):
            choice = override_syntax.quote_override(group, name)
            found = self._compose_values([*start, choice])
            costs[choice] = 1 + _count_overrides(found[group], want) if found else math.inf
        nearest = min(costs, key=lambda choice: (costs[choice], choice not in self.typed, len(choice)), default="")
        return [nearest] if nearest and costs[nearest] <= missing else []

    def _rank_options(self, group: str, have: Values, want: Values) -> list[str]:
        """Options that bring most of what is missing; then those that change least of what is there, which an experiment may set back."""
        ranks, missing = {}, _find_differing_keys(have, want)
        for name in self.compositions.options(group):
            wrong = _find_differing_keys(config.flatten_keys(self.compositions.option(group, name)), want)
            if len(wrong & missing) < len(missing):
                ranks[name] = (len(wrong & missing), len(wrong), len(name), name)
        return sorted(ranks, key=lambda name: ranks[name])[:MAX_TRIED_OPTIONS]

    def _prune_choices(self, choices: list[str]) -> list[str] | None:
        """The choices that save overrides, and the values that are left to set."""
        best = self._whole(choices)
        for choice in choices:
            without = [text for text in choices if text != choice]
            found = self._whole(without)
            if _compute_cost(found) <= _compute_cost(best):
                choices, best = without, found
        return best

    def _whole(self, choices: list[str]) -> list[str] | None:
        """The choices, and what they leave to set; None if they cannot be composed."""
        values = self._compose_values(choices)
        return None if values is None else [*choices, *_build_overrides(values, self.target, "")]

    def _drop_implied(self, found: list[str]) -> list[str]:
        """Without those that follow from others, as a value does that is taken from another key."""
        for text in found if len(found) <= MAX_PRUNED_OVERRIDES else ():
            without = [one for one in found if one != text]
            if is_same_value(self._compose_values(without), self.target):
                found = without
        return found

    def _compose_values(self, more: list[str]) -> Values | None:
        try:
            return self.compositions.compose(add_overrides(self.before, more))
        except (*compose.REFUSALS, ConfigError):
            return None


def _find_differing_keys(one: Values, other: Values) -> set[str]:
    """Full keys whose values differ."""
    return {key for key in {**one, **other} if not is_same_value(one.get(key, ABSENT), other.get(key, ABSENT))}


def _compute_cost(overrides: Sequence[str] | None) -> tuple[float, int]:
    return (math.inf, 0) if overrides is None else (len(overrides), sum(map(len, overrides)))


def _count_overrides(values: Any, target: Any) -> int:
    return sum(1 for _ in _build_overrides(values, target, "group"))


def _parse_group(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition(".")[0]


def _build_overrides(have: Any, want: Any, key: str) -> Iterator[str]:
    """The overrides that make `want` of `have`."""
    if is_same_value(have, want):
        return
    if key == ADAPTER_KEY:
        yield _build_adapter_override(have, want)
        return
    if not isinstance(have, dict) or not isinstance(want, dict):
        yield override_syntax.quote_override(key, want)
        return
    have, want = ({str(name): item for name, item in values.items()} for values in (have, want))
    changed = [name for name in {**have, **want} if not is_same_value(have.get(name, ABSENT), want.get(name, ABSENT))]
    if key and (not want or not all(map(override_syntax.is_name, changed))):
        yield f"{key}={override_syntax.quote_replacement(want)}"
        return
    if key and not have:
        yield override_syntax.quote_override(key, want, "++")
        return
    for name in changed:
        yield from _build_key_overrides(
            have.get(name, ABSENT), want.get(name, ABSENT), f"{key}.{name}" if key else name
        )


def _build_adapter_override(have: Values, want: Values) -> str:
    """This key takes a path, or a mapping, and is a mapping afterwards."""
    if not have or not want or want.keys() == {"default"}:
        return override_syntax.quote_override(ADAPTER_KEY, want.get("default") if want.keys() <= {"default"} else want)
    return f"{ADAPTER_KEY}={override_syntax.quote_replacement(want)}"


def _build_key_overrides(have: Any, want: Any, key: str) -> Iterator[str]:
    if want is ABSENT:
        yield f"~{key}"
    elif have is ABSENT:
        yield override_syntax.quote_override(key, want, "++")
    else:
        yield from _build_overrides(have, want, key)
