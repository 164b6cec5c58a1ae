"""From composed values to a `RunSpec`: types, missing values, rules between keys, all problems reported together. Light."""

from typing import Any

from omegaconf import DictConfig

from peftrun.checks import cross_group, validation
from peftrun.checks.unknown_keys import unknown_key
from peftrun.config import template_params
from peftrun.config.schema import run as schema
from peftrun.config.template_params import MISSING
from peftrun.config.values import flatten, plain
from peftrun.errors import ConfigError


def build_spec(cfg: DictConfig) -> schema.RunSpec:
    """The run that a composed configuration describes.

    Raises: ConfigError: one line a problem: unknown keys, missing values, wrong types, values out of range,
        values that contradict each other, files and folders that are not there.
    """
    return build_spec_from_values(plain(cfg))


def build_spec_from_values(values: dict[str, Any]) -> schema.RunSpec:
    """The run that resolved values describe, such as `plain` gives. Raises: ConfigError: see `build`."""
    parts: dict[str, Any] = {}
    problems = [*_unknown_groups(values), *_missing(values), *template_params.problems(values)]
    for name in validation.groups():
        part, lines = validation.typed(name, values.get(name))
        parts, problems = parts | part, problems + lines
    problems += cross_group.run(
        {name: part for name, part in parts.items() if MISSING not in flatten(values[name]).values()}
    )
    if problems:
        raise ConfigError(*problems)
    return schema.RunSpec(**parts)


def _unknown_groups(values: dict[str, Any]) -> list[str]:
    known = validation.groups()
    return [unknown_key(key, value, known) for key, value in values.items() if key not in known]


def _missing(values: dict[str, Any]) -> list[str]:
    """Slots are told with what belongs there, and not also the keys that read them."""
    return [
        f"{key} is not set; type {key}={validation.usual(key, values)}"
        for key, value in flatten(values).items()
        if value == MISSING and not isinstance(value, template_params.Unfilled) and not key.startswith("slots.")
    ]
