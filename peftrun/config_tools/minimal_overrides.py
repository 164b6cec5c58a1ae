"""The smallest set of overrides that gives a configuration, starting from the defaults or from another run's config. Light.

Options of groups are chosen first (the nearest one of each group), then the remaining differences are set key by key. A choice is
kept only if it saves overrides. The result is composed again, and must equal the target exactly.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from peftrun.composition import compose
from peftrun.composition.composer import Composer, to_plain_values
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.config.template_params import MISSING
from peftrun.errors import ConfigError

Values = dict[str, Any]
EXPERIMENT, ADAPTER_KEY = "experiment", "adapter"
# Composing is the slow part of the search, so only the best-ranked candidates are composed.
MAX_TRIED_OPTIONS = 4  # options of a group, and experiments
MAX_PRUNED_OVERRIDES = 40  # longer results are not searched for overrides that others imply
ABSENT = object()  # stands for the value of a key that does not exist; None is a value


def find_minimal_overrides(target: Values, search_path: Sequence[str] = (), start: Values | None = None) -> list[str]:
    """The fewest overrides that compose exactly the resolved values `target`.

    Args:
        search_path: entries in addition to peftrun's own options.
        start: another run's values. The result is then added to a command of that run, by `add_overrides`.

    Raises: ConfigError: no overrides give these values.
    """
    return search_overrides(Composer(search_path), search_path, target, start)


def search_overrides(
    compositions: Composer,
    search_path: Sequence[str],
    target: Values,
    start: Values | None = None,
    typed: Sequence[str] = (),
) -> list[str]:
    """`find_minimal_overrides` with an existing Composer. `typed`: options preferred among those that save as many overrides."""
    before = search_overrides(compositions, search_path, start) if start is not None else []
    search = _OverrideSearch(compositions, before, target, typed)
    for strategy in (search.find_best, search.set_every_value):
        overrides = strategy()
        if overrides is not None and _composes_target(add_overrides(before, overrides), search_path, target):
            return overrides
    raise ConfigError("config: has values that cannot be typed; keep the run folder's config.yaml")


def _composes_target(overrides: Sequence[str], search_path: Sequence[str], target: Values) -> bool:
    """Whether the overrides compose exactly the target, through Hydra itself and not through the Composer's cache."""
    try:
        return is_same_value(to_plain_values(compose.compose_run(overrides, search_path).cfg), target)
    except ConfigError:
        return False


def add_overrides(before: Sequence[str], added: Sequence[str]) -> list[str]:
    """The overrides `before`, then `added`. An added choice of a group's option removes earlier overrides of that group."""
    chosen = {text.partition("=")[0] for text in added} & {*GROUPS}
    return [text for text in before if text.lstrip("+~").partition("=")[0].partition(".")[0] not in chosen] + list(
        added
    )


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two plain values have the same effect: 1 equals 1.0 but not `true`, and the key 1 equals the key "1"."""
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({str(key): item for key, item in values.items()} for values in (one, other))
        return one.keys() == other.keys() and all(is_same_value(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)  # in Python, True == 1


def diff_values(one: Values, other: Values) -> dict[str, tuple[Any, Any]]:
    """Full key → (value in one, value in the other), where they differ. A missing key counts as null."""
    values, other_values = config.flatten_keys(one), config.flatten_keys(other)
    return {
        key: (values.get(key), other_values.get(key))
        for key in {**values, **other_values}
        if not is_same_value(values.get(key), other_values.get(key))
    }


class _OverrideSearch:
    """Searches for few overrides that, added to `before`, give `target`."""

    def __init__(self, compositions: Composer, before: Sequence[str], target: Values, typed: Sequence[str]) -> None:
        self.compositions, self.before, self.target, self.typed = compositions, before, target, typed

    def find_best(self) -> list[str] | None:
        """The smallest set found; of equally many overrides the shortest. None: nothing gives the target."""
        best = self._search_from([])
        if best is None or len(best) > 1:
            # The experiments that set more of the missing values than they change wrongly, best first.
            values = self._compose_values([]) or {}
            gains = {name: self._compute_gain(name, values) for name in self.compositions.options(EXPERIMENT)}
            ranked = sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])
            starts = [[override_syntax.quote_override(EXPERIMENT, name)] for name in ranked[:MAX_TRIED_OPTIONS]]
            exact = (start for start in starts if is_same_value(self._compose_values(start), self.target))
            best = next(exact, None) or min([best, *map(self._search_from, starts)], key=_compute_cost)
        # Overrides that others imply are dropped, such as a key that is interpolated from another.
        for text in best if best and len(best) <= MAX_PRUNED_OVERRIDES else ():
            assert best
            without = [other for other in best if other != text]
            if is_same_value(self._compose_values(without), self.target):
                best = without
        return best

    def set_every_value(self) -> list[str] | None:
        """An override for every value that differs, without choosing options."""
        return self._add_values([])

    def _compute_gain(self, experiment: str, values: Values) -> int:
        """Missing values and choices that the experiment sets, minus values that would then have to be set back."""
        choices, body = self.compositions.body(f"{EXPERIMENT}/{experiment}")
        now, target = config.flatten_keys(values), config.flatten_keys(self.target)
        gain = 0
        for group, option in choices.items():
            if group not in GROUPS:
                gain += 1
                continue
            # Whether the option differs from the target in fewer keys than the option chosen now.
            wanted, current = config.flatten_keys(self.target.get(group)), config.flatten_keys(values.get(group))
            candidate = config.flatten_keys(self.compositions.option(group, option))
            gain += len(_find_differing_keys(candidate, wanted)) < len(_find_differing_keys(current, wanted))
        for key, value in config.flatten_keys(body).items():
            if key in target and not is_same_value(now.get(key, ABSENT), target[key]):
                gain += is_same_value(value, target[key])
            elif not is_same_value(value, target.get(key, ABSENT)):
                gain -= 1
        return gain

    def _search_from(self, start: list[str]) -> list[str] | None:
        """The choices that save overrides, and overrides for the remaining differences."""
        values, choices = self._compose_values(start), list(start)
        for group in GROUPS if values else ():
            assert values
            choices += self._choose_option(group, values, start)
        best = self._add_values(choices)
        # Greedy: a choice that saves no override alone is dropped, even if it might in combination with another.
        for choice in choices:
            without = [text for text in choices if text != choice]
            candidate = self._add_values(without)
            if _compute_cost(candidate) <= _compute_cost(best):
                choices, best = without, candidate
        return best

    def _choose_option(self, group: str, values: Values, start: list[str]) -> list[str]:
        """The choice of the group's nearest option, or nothing if no option saves overrides."""
        current, target = values.get(group), self.target.get(group)
        if not isinstance(target, dict) or is_same_value(current, target):
            return []
        # Options by the number of missing values that they leave, then by all values in which they differ. The second
        # counts less, because an experiment composed later may set those values back.
        ranks, flat_target = {}, config.flatten_keys(target)
        missing = _find_differing_keys(config.flatten_keys(current), flat_target)
        for name in self.compositions.options(group):
            own = config.flatten_keys(self.compositions.option(group, name))
            wrong = _find_differing_keys(own, flat_target)
            if len(wrong & missing) < len(missing):
                ranks[name] = (len(wrong & missing), len(wrong), _count_set(own, wrong), len(name), name)
        costs: dict[str, tuple[Any, ...]] = {}
        for name in sorted(ranks, key=lambda name: ranks[name])[:MAX_TRIED_OPTIONS]:
            choice = override_syntax.quote_override(group, name)
            composed = self._compose_values([*start, choice])
            if composed:
                own = config.flatten_keys(composed[group])
                replaced = _count_set(own, _find_differing_keys(own, flat_target))
                cost = 1 + _count_overrides(composed[group], target)
                costs[choice] = (cost, choice not in self.typed, replaced, len(choice))
        nearest = min(costs, key=lambda choice: costs[choice], default="")
        return [nearest] if nearest and costs[nearest][0] <= _count_overrides(current, target) else []

    def _add_values(self, choices: list[str]) -> list[str] | None:
        """The choices, and an override for each value in which they differ from the target. None: they cannot be composed."""
        values = self._compose_values(choices)
        return None if values is None else [*choices, *_build_overrides(values, self.target, "")]

    def _compose_values(self, overrides: list[str]) -> Values | None:
        """The values that `before` and these overrides compose; None: they cannot be composed."""
        try:
            return self.compositions.compose(add_overrides(self.before, overrides))
        except (*compose.REFUSALS, ConfigError):
            return None


def _find_differing_keys(one: Values, other: Values) -> set[str]:
    """Full keys whose values differ, or that only one of the two has."""
    return {key for key in {**one, **other} if not is_same_value(one.get(key, ABSENT), other.get(key, ABSENT))}


def _count_set(values: Values, keys: set[str]) -> int:
    """How many of these keys an option sets: one that leaves them open is not another model or task than the one that is meant."""
    return sum(values.get(key) not in (None, MISSING) for key in keys)


def _compute_cost(overrides: Sequence[str] | None) -> tuple[float, int]:
    """(number of overrides, number of characters), to be minimized."""
    return (math.inf, 0) if overrides is None else (len(overrides), sum(map(len, overrides)))


def _count_overrides(values: Any, target: Any) -> int:
    return sum(1 for _ in _build_overrides(values, target, "group"))


def _build_overrides(have: Any, want: Any, key: str) -> Iterator[str]:
    """Overrides that change the value of `key` from `have` to `want`; an empty key is the root."""
    if is_same_value(have, want):
        return
    if want is ABSENT:
        yield f"~{key}"
    elif have is ABSENT:
        yield override_syntax.quote_override(key, want, "++")
    elif key == ADAPTER_KEY and have and want and want.keys() != {"default"}:
        yield f"{key}={override_syntax.quote_replacement(want)}"
    elif key == ADAPTER_KEY:  # accepts a path, which becomes the mapping {default: PATH}
        yield override_syntax.quote_override(key, want.get("default") if want.keys() <= {"default"} else want)
    elif not isinstance(have, dict) or not isinstance(want, dict):
        yield override_syntax.quote_override(key, want)
    else:
        have, want = ({str(name): item for name, item in values.items()} for values in (have, want))
        pairs = {name: (have.get(name, ABSENT), want.get(name, ABSENT)) for name in {**have, **want}}
        changed = [name for name, pair in pairs.items() if not is_same_value(*pair)]
        # Hydra merges mappings, so one that loses all keys, or has keys that Hydra's grammar cannot name, is replaced.
        if key and (not want or not all(map(override_syntax.is_name, changed))):
            yield f"{key}={override_syntax.quote_replacement(want)}"
        elif key and not have:
            yield override_syntax.quote_override(key, want, "++")
        else:
            for name in changed:
                yield from _build_overrides(*pairs[name], f"{key}.{name}" if key else name)
