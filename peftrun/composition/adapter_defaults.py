"""An adapter's training run supplies base model and task to actions on that adapter, unless others are typed. Light."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from peftrun.artifacts import adapter_folder, token_settings
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
    """
    run = find_adapter_run(values)
    keys = {text.lstrip("+~").partition("=")[0] for text in typed}
    groups = [group for group in GROUPS if not keys & {group, "experiment"}]
    if run is None or not groups:
        return _adopt_tokens(values, keys, chosen="model" not in groups)
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
    adopted = _adopt_tokens(packages.prefer_user_files(adopted), keys, chosen="model" not in groups)
    if changed := [group for group in groups if adopted[group] != values[group]]:
        options = " and ".join(f"{group}=" for group in changed)
        config.report_upgrades(
            [f"{' and '.join(changed)} of {run}, whose adapter this is (type {options} for another)"]
        )
    return adopted


def _adopt_tokens(values: dict[str, Any], keys: set[str], chosen: bool) -> dict[str, Any]:
    """The values with the chat template and the tokens that are saved beside the active adapter, except those that are typed.

    Args: chosen: whether an option or an experiment selects the base model, whose own settings then stay.
    """
    active, model = _find_active_adapter(values), values.get("model")
    if active is None or not isinstance(model, dict):
        return values
    try:
        adapter = adapter_folder.resolve_adapter(active[1], active[0])
        saved = ((adapter.metadata or {}).get("base") or {}).get("tokens") or {}
    except (PeftrunError, OSError):  # reported when the adapter is loaded
        return values
    typed = {key.split(".")[1] for key in keys if key.startswith("model.")}
    typed |= {"pad_vocab_to_multiple_of"} if "new_tokens" in typed else set()  # it belongs to them
    adopted = {
        key: str(adapter.folder / value) if key == "chat_template" else copy.deepcopy(value)
        for key, value in saved.items()
        if key in token_settings.KEYS and key not in typed and not (chosen and model.get(key) is not None)
    }
    return values | {"model": model | adopted} if adopted else values


def find_adapter_run(values: dict[str, Any]) -> Path | None:
    """Folder of the run that made the active adapter; None if there is none, or it is unknown."""
    active = _find_active_adapter(values)
    return adapter_folder.find_adapter_run(active[1]) if active else None


def _find_active_adapter(values: dict[str, Any]) -> tuple[str, str] | None:
    """Name and path of the active adapter, by default the first; None without adapters, or for an action that does not load them."""
    adapters, action = values.get("adapter"), values.get("action")
    if not isinstance(adapters, dict) or not adapters or not isinstance(action, dict) or action.get("name") in EXCLUDED:
        return None
    name = values.get("active_adapter")
    name = name if name in adapters else next(iter(adapters))
    path = adapters[name]
    return (str(name), path) if isinstance(path, str) and path.strip() else None
