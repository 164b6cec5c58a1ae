"""An adapter's training run supplies base model and task to actions on that adapter, unless others are typed; the adapter itself its method. Light."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from peftrun.artifacts import adapter_folder, adapter_settings
from peftrun.artifacts.run_layout import CONFIG
from peftrun.checks.tasks import MODELLESS
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.config.template_params import MISSING
from peftrun.errors import PeftrunError
from peftrun.system import packages

GROUPS = ("model", "task")
CONTINUING = ("train", "plan")  # actions that train the adapter further


def build_run_spec(cfg: DictConfig, typed: Sequence[str]) -> RunSpec:
    """The checked run of a composed configuration, with its adapter's base model and task. Raises: ConfigError: see `build_spec`."""
    return build_spec_from_values(apply_adapter_defaults(config.resolve_values(cfg), typed))


def apply_adapter_defaults(values: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """Resolved values with base model and task of the adapter's run, unless an option or an experiment selects them.

    Single keys that are typed (`task.data.path=OTHER.jsonl`) are applied on top.
    """
    run = find_adapter_run(values)
    keys = {text.lstrip("+~").partition("=")[0] for text in typed}
    groups = [group for group in GROUPS if not keys & {group, "experiment"}]
    try:
        recorded = config.read_run(run / CONFIG, report_changes=False) if run else {}
    except PeftrunError:  # reported where more of that run is needed
        recorded = {}
    values = _apply_method(values, recorded, keys)
    if not recorded or not groups:
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
    if (
        not isinstance(adapters, dict)
        or not adapters
        or not isinstance(action, dict)
        or action.get("name") in MODELLESS
    ):
        return None
    # Of several adapters the active one decides, by default the first.
    path = adapters.get(values.get("active_adapter"), next(iter(adapters.values())))
    if not isinstance(path, str) or not path.strip():
        return None
    return adapter_folder.find_adapter_run(path)


def _apply_method(values: dict[str, Any], recorded: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Resolved values with group `lora` of the adapter that is trained further, and what is typed of it on top.

    Typed values that contradict the adapter stay, for `checks.parent` to report; those that its own run had are the adapter's.

    Args: recorded: the values of the run that made it. keys: that are typed.
    """
    adapters, lora, action = values.get("adapter"), values.get("lora"), values.get("action")
    if not (isinstance(adapters, dict) and len(adapters) == 1 and isinstance(lora, dict) and isinstance(action, dict)):
        return values
    if action.get("name") not in CONTINUING or action.get("stack"):  # an adapter on top of it has a method of its own
        return values
    own, ((name, path),) = recorded.get("lora") or {}, adapters.items()
    try:
        adapter = adapter_folder.resolve_adapter(path, name)
    except (PeftrunError, OSError):  # reported when the adapter is checked
        return values
    settings, chosen = adapter_settings.read_settings(adapter, own), _list_chosen_keys(lora, keys)
    if settings is None or adapter_settings.why_not_continued(adapter):
        return values
    if "method" in chosen and lora.get("method") != settings["method"]:
        return values
    for key in chosen - {"method"}:
        names = key.split(".")
        if lora.get(names[0]) != own.get(names[0], MISSING):
            config.take_value(settings, lora, names)
    if settings != lora:
        config.report_upgrades([f"lora of {path}, the adapter that is trained further"])
    return values | {"lora": settings}


def _list_chosen_keys(lora: dict[str, Any], keys: set[str]) -> set[str]:
    """Keys of group `lora` that are typed, or that the typed option sets otherwise than the option named as its method."""
    typed = {key.removeprefix("lora.") for key in keys if key.startswith("lora.")}
    if "lora" not in keys:
        return typed
    plain = adapter_settings.read_defaults(str(lora.get("method"))) or {}
    return typed | {"method"} | {key for key, value in lora.items() if plain.get(key, MISSING) != value}
