"""The method of the adapter that is trained further is the adapter's, and what is typed of it is applied on top. Light."""

from typing import Any

from peftrun.artifacts import adapter_folder, adapter_settings
from peftrun.config import values as config
from peftrun.config.template_params import MISSING
from peftrun.errors import PeftrunError

CONTINUING = ("train", "plan")  # actions that train the adapter further


def apply_adapter_method(values: dict[str, Any], own: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Resolved values with group `lora` of the adapter that is trained further, and what is typed of it on top.

    Typed values that contradict the adapter stay, for `checks.parent` to report; those that its own run had are the adapter's.

    Args: own: group `lora` of the run that made it; empty if unknown. keys: that are typed.
    """
    adapters, lora, action = values.get("adapter"), values.get("lora"), values.get("action")
    if not (isinstance(adapters, dict) and len(adapters) == 1 and isinstance(lora, dict) and isinstance(action, dict)):
        return values
    if action.get("name") not in CONTINUING or action.get("stack"):  # an adapter on top of it has a method of its own
        return values
    ((name, path),) = adapters.items()
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
        config.report_upgrades([f"lora of {adapter.path}, the adapter that is trained further"])
    return values | {"lora": settings}


def _list_chosen_keys(lora: dict[str, Any], keys: set[str]) -> set[str]:
    """Keys of group `lora` that are typed, or that the typed option sets otherwise than the option named as its method."""
    typed = {key.removeprefix("lora.") for key in keys if key.startswith("lora.")}
    if "lora" not in keys:
        return typed
    plain = adapter_settings.read_defaults(str(lora.get("method"))) or {}
    return typed | {"method"} | {key for key, value in lora.items() if plain.get(key, MISSING) != value}
