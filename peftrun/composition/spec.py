"""From composed values to a `RunSpec`: types, missing values, rules between keys; all problems are reported together. Light."""

from collections.abc import Collection
from functools import cache
from typing import Any

from omegaconf import DictConfig

from peftrun.checks import cross_group, validation
from peftrun.checks.unknown_keys import explain_unknown_key
from peftrun.config import template_params
from peftrun.config.schema import run as schema
from peftrun.config.template_params import MISSING
from peftrun.config.values import flatten_keys, resolve_values
from peftrun.errors import ConfigError


@cache  # composing takes a moment, and each cell of a sweep asks
def get_default_values() -> dict[str, Any]:
    """The resolved values of a training without any override, nested; not to be changed."""
    from peftrun.composition import compose

    return resolve_values(compose.compose_run([]).cfg)


def build_spec(cfg: DictConfig) -> schema.RunSpec:
    """The checked run of a composed configuration.

    Raises: ConfigError: one line per problem: unknown keys, missing values, wrong types, values out of range,
        contradicting values, missing files and folders.
    """
    return build_spec_from_values(resolve_values(cfg))


def build_spec_from_values(values: dict[str, Any], deferred: Collection[str] = ()) -> schema.RunSpec:
    """The checked run of resolved values, such as those of a config.yaml.

    Args: deferred: groups whose values will be others: rules that read them are left out.

    Raises: ConfigError: see `build_spec`.
    """
    names = validation.list_groups()
    problems = [explain_unknown_key(key, value, names) for key, value in values.items() if key not in names]
    passed_on = isinstance(values.get("action"), dict) and values["action"].get("name") == "import"  # into a file
    problems += [
        f"{key} is not set; type {key}={validation.suggest_value(key, values)}"
        for key, value in flatten_keys(values).items()
        # Missing template parameters are reported by check_params, with their help, and not again for the keys that use them.
        if value == MISSING
        and not isinstance(value, template_params.MissingParam)
        and not key.startswith("params.")
        and (not passed_on or key.startswith("action."))
    ]
    problems += template_params.check_params(values)
    groups: dict[str, Any] = {}
    for name in names:
        valid, lines = validation.validate_group(name, values.get(name))
        groups, problems = groups | valid, problems + lines
    # Rules between keys see only valid groups without missing values, so that no problem is reported twice.
    problems += cross_group.check_groups(
        {
            name: group
            for name, group in groups.items()
            if name not in deferred and MISSING not in flatten_keys(values[name]).values()
        }
    )
    if problems:
        raise ConfigError(*problems)
    return schema.RunSpec(**groups)
