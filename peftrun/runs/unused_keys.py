"""Values that somebody has set and that nothing has read. Light."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.artifacts import run_overrides
from peftrun.checks.unknown_keys import SELECTOR_KEYS
from peftrun.config import override_syntax
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec

LOOKING = (
    "plan",
    "preview",
    "replay",
    "explain",
    "template",
    "check",
)  # at configs that other runs are to use, or did
ALONE = ("adapter", "active", "seed")  # keys, and no groups, that stand at the top
TEMPLATES = ("slots", "template")  # read while the config is composed


def find_unused_keys(spec: RunSpec, out_dir: Path, unread: Sequence[str]) -> list[str]:
    """`key=value` of those unread keys that were set: for a training, by a key or a chosen option; for other actions, by a typed key alone.

    Those others are told to use the model, task and device of a training, by the same options.
    """
    if spec.action.name in LOOKING:
        return []
    values = config.flatten_keys(dataclasses.asdict(spec))
    unread = [key for key in unread if key not in SELECTOR_KEYS and key.split(".")[0] not in TEMPLATES]
    wanted = [key for key in unread if not _is_neutral(values[key])]
    if spec.action.name == "train":
        usual = _compose_defaults()
        wanted = [key for key in wanted if values[key] != usual.get(key)]
    else:
        typed = {text.lstrip("+~").partition("=")[0] for text in run_overrides.read_overrides(out_dir)}
        wanted = [
            key
            for key in wanted
            if any(key == one or key.startswith(f"{one}.") for one in typed if "." in one or one in ALONE)
        ]
        return [
            *_find_unused_tracker(spec, typed),
            *(override_syntax.quote_override(key, values[key]) for key in wanted),
        ]
    return [override_syntax.quote_override(key, values[key]) for key in wanted]


def _find_unused_tracker(spec: RunSpec, typed: set[str]) -> list[str]:
    """A tracker that was chosen for what no tracker is told of: unlike model, task and device no next action is told to choose it."""
    chosen = "tracker" in typed and spec.tracker.name != "none"
    return [override_syntax.quote_override("tracker", spec.tracker.name)] if chosen else []


def warn_unused(lines: Iterable[str]) -> None:
    """One line on standard error, if there is something to tell."""
    told = list(dict.fromkeys(lines))
    if told:
        was, it = ("was", "it") if len(told) == 1 else ("were", "them")
        console.print_warning(f"{', '.join(told)} {was} set and nothing read {it} on this path")


def _is_neutral(value: Any) -> bool:
    """Whether it asks for nothing."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


@cache
def _compose_defaults() -> dict[str, Any]:
    """What a training is composed of when nothing is typed."""
    from peftrun.composition import compose

    return config.flatten_keys(config.resolve_values(compose.compose_run([]).cfg))
