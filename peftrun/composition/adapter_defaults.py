"""An adapter's training run supplies base model and task to actions on that adapter, unless others are typed. Light."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from peftrun.artifacts import adapter_folder, function_files
from peftrun.artifacts.run_layout import CONFIG
from peftrun.checks.tasks import MODELLESS
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.errors import PeftrunError
from peftrun.system import packages

GROUPS = ("model", "task")
EXCLUDED = ("train", "plan", *MODELLESS)  # actions that take no adapter, or choose models and rows themselves


def build_run_spec(cfg: DictConfig, typed: Sequence[str]) -> RunSpec:
    """The checked run of a composed configuration, with its adapter's base model and task. Raises: ConfigError: see `build_spec`."""
    return build_spec_from_values(apply_adapter_defaults(config.resolve_values(cfg), typed))


def apply_adapter_defaults(values: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """Resolved values with base model and task of the adapter's run, unless an option or an experiment selects them.

    Single keys that are typed (`task.data.path=OTHER.jsonl`) are applied on top.
    Raises: ConfigError: see `function_files.make_absolute`.
    """
    values, run = function_files.make_absolute(values, typed), find_adapter_run(values)
    keys = {text.lstrip("+~").partition("=")[0] for text in typed}
    groups = [group for group in GROUPS if not keys & {group, "experiment"}]
    if run is None or not groups:
        return values
    try:
        recorded = config.read_run(run / CONFIG, report_changes=False)
    except PeftrunError:  # reported where more of that run is needed
        return values
    adopted = dict(values)
    for group in groups:
        if isinstance(recorded.get(group), dict) and isinstance(values.get(group), dict):
            adopted[group] = copy.deepcopy(recorded[group])
            for key in keys:
                if key.startswith(f"{group}."):
                    config.take_value(adopted[group], values[group], key.split(".")[1:])
    adopted = packages.prefer_user_files(adopted)
    if changed := [group for group in groups if adopted[group] != values[group]]:
        options = " and ".join(f"{group}=" for group in changed)
        config.report_upgrades(
            [f"{' and '.join(changed)} of {run}, whose adapter this is (type {options} for another)"]
        )
    return adopted


def find_adapter_run(values: dict[str, Any]) -> Path | None:
    """Folder of the run that made the active adapter; None if there is none, or it is unknown."""
    adapters, action = values.get("adapter"), values.get("action")
    if not isinstance(adapters, dict) or not adapters or not isinstance(action, dict) or action.get("name") in EXCLUDED:
        return None
    # Of several adapters the active one decides, by default the first.
    path = adapters.get(values.get("active_adapter"), next(iter(adapters.values())))
    if not isinstance(path, str) or not path.strip():
        return None
    return adapter_folder.find_adapter_run(path)
