"""The run that a record describes, to be run again: its own config, and what is typed beside."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import CONFIG
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError

UNUSED = ("action", "hydra")  # keys of the replay itself
# Keys of an action that say where something lies, not what comes out.
PLACES = ("resume", "output_dir")


def load_run_values(run: Path) -> dict[str, Any]:
    """The resolved config of a run folder, in today's keys, to be run from its first step into a folder of its own."""
    values = config.read_run(run / CONFIG)
    action = values["action"]
    action |= {key: None for key in PLACES if key in action}
    values["tracker"] = {"name": "none"}  # it was told once
    if action["name"] == "generate" and action.get("prompt") is None and action.get("prompts_file") is None:
        raise ConfigError(
            f"action.run={run}: is a talk with a person, which cannot be run again; name another run, or type action=generate"
        )
    return values


def apply_overrides(values: dict[str, Any], typed: Sequence[str], own: RunSpec) -> dict[str, Any]:
    """`values` with what was typed beside `action=replay`.

    Args: typed: in full, as typed. own: the replay's own spec, in which each of these keys has its value.

    Raises: ConfigError: something typed does not name a key of a record.
    """
    beside = dataclasses.asdict(own)
    for text in typed:
        key = text.lstrip("+~").partition("=")[0].partition("@")[0]
        group = key.partition(".")[0].partition("/")[0]
        if group in UNUSED:
            continue
        if key == "experiment":
            raise ConfigError(f"{text}: a record has all its values already; type those that shall differ")
        _copy_value(values, key, beside)
    return values


def build_rerun_spec(values: dict[str, Any]) -> RunSpec:
    """Raises: ConfigError: one line for each problem, such as a file of rows that is no longer there."""
    return build_spec_from_values(values)


def _copy_value(values: dict[str, Any], key: str, beside: dict[str, Any]) -> None:
    path = [key] if key in GROUPS else key.split(".")
    target, source = values, beside
    for step in path[:-1]:
        source = source.get(step) or {}
        inner = target.get(step)
        target[step] = inner if isinstance(inner, dict) else {}
        target = target[step]
    if path[-1] in source:
        target[path[-1]] = source[path[-1]]
    else:  # taken away with ~key
        target.pop(path[-1], None)
