"""From composed values to a `RunSpec`: types, missing values, rules between keys, all problems reported together. Light."""

from typing import Any

from omegaconf import DictConfig

from peftrun.checks import cross_group, validation
from peftrun.checks.unknown_keys import explain_unknown_key
from peftrun.config import template_params
from peftrun.config.schema import run as schema
from peftrun.config.template_params import MISSING
from peftrun.config.values import flatten_keys, resolve_values
from peftrun.errors import ConfigError


def build_spec(cfg: DictConfig) -> schema.RunSpec:
    """The run that a composed configuration describes.

    Raises: ConfigError: one line a problem: unknown keys, missing values, wrong types, values out of range,
        values that contradict each other, files and folders that are not there.
    """
    return build_spec_from_values(resolve_values(cfg))


def build_spec_from_values(values: dict[str, Any]) -> schema.RunSpec:
    """The run that resolved values describe, such as `plain` gives. Raises: ConfigError: see `build`."""
    parts: dict[str, Any] = {}
    problems = [*_find_unknown_groups(values), *_find_missing_values(values), *template_params.check_params(values)]
    for name in validation.list_groups():
        part, lines = validation.validate_group(name, values.get(name))
        parts, problems = parts | part, problems + lines
    problems += cross_group.check_groups(
        {name: part for name, part in parts.items() if MISSING not in flatten_keys(values[name]).values()}
    )
    if problems:
        raise ConfigError(*problems)
    return schema.RunSpec(**parts)


def _find_unknown_groups(values: dict[str, Any]) -> list[str]:
    known = validation.list_groups()
    return [explain_unknown_key(key, value, known) for key, value in values.items() if key not in known]


def _find_missing_values(values: dict[str, Any]) -> list[str]:
    """Slots are told with what belongs there, and not also the keys that read them."""
    return [
        f"{key} is not set; type {key}={validation.suggest_value(key, values)}"
        for key, value in flatten_keys(values).items()
        if value == MISSING and not isinstance(value, template_params.MissingParam) and not key.startswith("slots.")
    ]
