"""Rebuild the spec of a recorded run, with the overrides typed with action=replay."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun.artifacts import hub_download
from peftrun.artifacts.run_layout import CONFIG
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.paths import GROUPS
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError

REPLAY_KEYS = ("action", "hydra")  # keys of the replay itself
# Keys of an action that name paths and do not change its outcome.
PATH_KEYS = ("resume", "output_dir")


def load_run_values(run: Path) -> dict[str, Any]:
    """The resolved config of a run folder in today's keys, set to start from the first step in a new folder."""
    values = config.read_run(run / CONFIG)
    action = values["action"]
    action |= {key: None for key in PATH_KEYS if key in action}
    values["tracker"] = {"name": "none"}  # it was logged by the first run already
    if action["name"] == "generate" and action.get("prompt") is None and action.get("prompts_file") is None:
        raise ConfigError(
            f"action.run={run}: was an interactive chat and cannot be replayed; name another run, or type action=generate"
        )
    return values


def apply_overrides(values: dict[str, Any], typed: Sequence[str], replay_spec: RunSpec) -> dict[str, Any]:
    """`values` with what was typed with `action=replay`.

    Args:
        typed: the overrides, in full.
        replay_spec: the replay's own spec, in which each of these keys has its parsed value.

    Raises: ConfigError: an override is an experiment, which would set values that the record already has.
    """
    replay_values = dataclasses.asdict(replay_spec)
    for text in typed:
        key = text.lstrip("+~").partition("=")[0].partition("@")[0]
        group = key.partition(".")[0].partition("/")[0]
        if group in REPLAY_KEYS:
            continue
        if key == "experiment":
            raise ConfigError(f"{text}: a record has all its values already; type the keys to change")
        # A chosen option replaces its whole group, other keys a single value.
        config.take_value(values, replay_values, [key] if key in GROUPS else key.split("."))
    return values


def build_rerun_spec(values: dict[str, Any]) -> RunSpec:
    """The checked spec; adapters on the Hub at their recorded commits are downloaded if they are not here.

    Raises: ConfigError: one line per problem, such as a data file that no longer exists. AdapterError: an adapter cannot be downloaded.
    """
    return build_spec_from_values({**values, "adapter": hub_download.pin_adapters(values["adapter"])})
