"""An adapter supplies the base model that it was made for, the task that it learned and its method, unless others are typed. Light."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig

from peftrun.artifacts import adapter_folder, adapter_origin, function_files, hub_adapters, hub_download, token_settings
from peftrun.artifacts.adapter_origin import GROUPS, AdapterOrigin
from peftrun.checks.tasks import MODELLESS, reads_rows
from peftrun.composition import adapter_method
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError, PeftrunError
from peftrun.system import packages

# Group → keys that choose its content, and so stand for it where they are typed.
CHOOSING_KEYS = {"model": ("model.name_or_path",), "task": ("task.type", "task.data.path")}
NO_EVALUATION = {"reload": ", or action.evaluate=false", "merge": ", or action.num_eval_rows=0"}

PinAdapter = Callable[[str, str], str]  # path and name of an adapter → its path with the commit


def build_run_spec(cfg: DictConfig, typed: Sequence[str]) -> RunSpec:
    """The checked run of a composed configuration, with its adapter's base model and task; adapters on the Hub are downloaded.

    Raises: ConfigError: see `build_spec`; then nothing was downloaded. AdapterError: an adapter on the Hub cannot be.
    """
    return build_pinned_spec(resolve_values(cfg, typed), typed)


def resolve_values(cfg: DictConfig, typed: Sequence[str]) -> dict[str, Any]:
    """`config.resolve_values`, with the files of the user's functions as absolute paths. Raises: ConfigError: see there, and `make_absolute`."""
    return function_files.make_absolute(config.resolve_values(cfg), typed)


def build_pinned_spec(
    values: dict[str, Any], typed: Sequence[str], pin: PinAdapter = hub_download.pin_adapter
) -> RunSpec:
    """The same of resolved values. `pin`: downloads an adapter and pins its commit."""
    spec = check_values(values, typed)
    if any(adapter_folder.awaits_download(path, name) for name, path in spec.adapter.items()):
        spec = check_values({**values, "adapter": hub_download.pin_adapters(spec.adapter, pin)}, typed)
    return spec


def check_values(values: dict[str, Any], typed: Sequence[str]) -> RunSpec:
    """The checked run without asking the Hub: what only an adapter says that is not downloaded yet is left unchecked.

    Raises: ConfigError: see `build_spec`, or neither the command nor the adapter says which base model or task is meant.
    """
    origin = find_adapter_origin(values)
    adopted, deferred = apply_adapter_defaults(values, typed, origin), dict(_list_open_groups(values, typed, origin))
    lines = [line for line in deferred.values() if line]
    try:
        spec = build_spec_from_values(adopted, deferred)
    except ConfigError as error:
        raise ConfigError(*lines, *error.lines) from error
    if lines:
        raise ConfigError(*lines)
    return spec


def apply_adapter_defaults(
    values: dict[str, Any], typed: Sequence[str], origin: AdapterOrigin | None
) -> dict[str, Any]:
    """Resolved values with base model and task of the adapter, unless an option or an experiment selects them.

    Single keys that are typed (`task.data.path=OTHER.jsonl`) are applied on top.

    Args: origin: of the active adapter, see `find_adapter_origin`.
    """
    groups, keys = _list_free_groups(typed), _list_typed_keys(typed)
    values = adapter_method.apply_adapter_method(values, origin.lora if origin else {}, keys)
    if origin is None or not groups:
        return _adopt_tokens(values, keys, chosen="model" not in groups)
    adopted = dict(values)
    for group in groups:
        if group in origin.groups and isinstance(values.get(group), dict):
            adopted[group] = copy.deepcopy(origin.groups[group])
            for key in keys:
                if key.startswith(f"{group}."):
                    config.take_value(adopted[group], values[group], key.split(".")[1:])
    adopted = _adopt_tokens(packages.prefer_user_files(adopted), keys, chosen="model" not in groups)
    if changed := [group for group in groups if adopted[group] != values[group]]:
        names, options = " and ".join(changed), " and ".join(f"{group}=" for group in changed)
        made = f"of {origin.source}, whose adapter this is" if origin.is_run else f"that {origin.source} was made with"
        config.report_upgrades([f"{names} {made} (type {options} for another)"])
    return adopted


def _adopt_tokens(values: dict[str, Any], keys: set[str], chosen: bool) -> dict[str, Any]:
    """The values with the chat template and the tokens that are saved beside the active adapter, except those that are typed.

    Args: chosen: whether an option or an experiment selects the base model, whose own settings then stay.
    """
    active, model = _find_active_adapter(values), values.get("model")
    if active is None or not isinstance(model, dict):
        return values
    try:
        adapter = adapter_folder.resolve_adapter(*active)
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


def find_adapter_origin(values: dict[str, Any]) -> AdapterOrigin | None:
    """How the active adapter was made; None if there is none, or that is unknown."""
    active = _find_active_adapter(values)
    return None if active is None or adapter_folder.awaits_download(*active) else adapter_origin.read_origin(*active)


def _list_open_groups(
    values: dict[str, Any], typed: Sequence[str], origin: AdapterOrigin | None
) -> Iterator[tuple[str, str]]:
    """(group, line) of each that only the adapter could say and does not. The line is empty if it may, once it is downloaded."""
    active = _find_active_adapter(values)
    if active is None:
        return
    keys, (path, name) = _list_typed_keys(typed), active
    option = adapter_folder.format_adapter_option(hub_adapters.format_source(path), name)
    for group in _list_free_groups(typed):
        if keys & set(CHOOSING_KEYS[group]):
            continue
        if origin is None and adapter_folder.awaits_download(path, name):
            yield group, ""
        elif origin and group == "model" and origin.unknown_base:
            yield group, f"{option}: {origin.unknown_base}; type model=pretrained model.name_or_path=FOLDER_OR_HUB_ID"
        elif origin and group == "task" and group not in origin.groups and _measures(values):
            advice = NO_EVALUATION.get(values["action"]["name"], "")
            yield group, f"{option}: does not say what it was trained on; type task=NAME{advice}"


def _measures(values: dict[str, Any]) -> bool:
    """Whether the action reads rows of its task; False where a key is missing, which is reported."""
    with suppress(AttributeError, TypeError):
        task: Any = SimpleNamespace(**values["task"])  # not validated yet
        return reads_rows(task, SimpleNamespace(**values["action"]))
    return False


def _find_active_adapter(values: dict[str, Any]) -> tuple[str, str] | None:
    """Path and name of the active adapter, if the action takes base model and task from it."""
    adapters, action = values.get("adapter"), values.get("action")
    if (
        not isinstance(adapters, dict)
        or not adapters
        or not isinstance(action, dict)
        or action.get("name") in MODELLESS
    ):
        return None
    # Of several adapters the active one decides, by default the first.
    name = values.get("active_adapter")
    name = name if name in adapters else next(iter(adapters))
    path = adapters[name]
    return (path, str(name)) if isinstance(path, str) and path.strip() else None


def _list_free_groups(typed: Sequence[str]) -> list[str]:
    """Groups that no option and no experiment of the command selects."""
    keys = _list_typed_keys(typed)
    return [group for group in GROUPS if not keys & {group, "experiment"}]


def _list_typed_keys(typed: Sequence[str]) -> set[str]:
    return {text.lstrip("+~").partition("=")[0] for text in typed}
