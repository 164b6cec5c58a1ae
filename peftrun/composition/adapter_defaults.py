"""The run that made an adapter: its base and its task are those of whatever is done with the adapter, unless others are typed. Light."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from peftrun.artifacts import adapter_folder
from peftrun.artifacts.run_layout import CONFIG
from peftrun.checks.tasks import MODELLESS
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.errors import PeftrunError
from peftrun.system import packages

GROUPS = ("model", "task")
APART = ("train", "plan", *MODELLESS)  # actions that take no adapter, or see to models and rows themselves


def build_run_spec(cfg: DictConfig, typed: Sequence[str]) -> RunSpec:
    """The run that a composed configuration describes, on its adapter's own base and task. Raises: ConfigError: see `config.build`."""
    return build_spec_from_values(apply_adapter_defaults(config.resolve_values(cfg), typed))


def apply_adapter_defaults(values: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """Resolved values in which base and task are those of the adapter's run, where neither an option nor an experiment chooses them.

    Single keys that are typed (`task.data.path=OTHER.jsonl`) hold beside them.
    """
    run = find_adapter_run(values)
    keys = {text.lstrip("+~").partition("=")[0] for text in typed}
    groups = [group for group in GROUPS if not keys & {group, "experiment"}]
    if run is None or not groups:
        return values
    try:
        recorded = config.read_run(run / CONFIG, aloud=False)
    except PeftrunError:  # told by whoever needs more of the run than this
        return values
    found = dict(values)
    for group in groups:
        if isinstance(recorded.get(group), dict) and isinstance(values.get(group), dict):
            found[group] = _overlay_values(
                recorded[group], values[group], [key for key in keys if key.startswith(f"{group}.")]
            )
    found = packages.prefer_user_files(found)
    _report_adopted(run, [group for group in groups if found[group] != values[group]])
    return found


def find_adapter_run(values: dict[str, Any]) -> Path | None:
    """The folder of the run that made the adapter which answers; None where there is none, or nothing is known of it."""
    adapters, action = values.get("adapter"), values.get("action")
    if not isinstance(adapters, dict) or not adapters or not isinstance(action, dict) or action.get("name") in APART:
        return None
    path = adapters.get(values.get("active"), next(iter(adapters.values())))
    if not isinstance(path, str) or not path.strip():
        return None
    return adapter_folder.find_adapter_run(path)


def _overlay_values(own: dict[str, Any], composed: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The adapter's own values, with what was typed for single keys."""
    found = copy.deepcopy(own)
    for key in keys:
        target, source = found, composed
        *path, last = key.split(".")[1:]
        for step in path:
            inner, source = target.get(step), source.get(step) or {}
            target[step] = inner if isinstance(inner, dict) else {}
            target = target[step]
        if last in source:
            target[last] = source[last]
        else:  # taken away with ~key
            target.pop(last, None)
    return found


def _report_adopted(run: Path, groups: Sequence[str]) -> None:
    if groups:
        others = " and ".join(f"{group}=" for group in groups)
        config.report_upgrades([f"{' and '.join(groups)} of {run}, whose adapter this is (type {others} for another)"])
