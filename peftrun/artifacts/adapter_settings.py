"""The settings of a saved adapter as values of group `lora`, which a training that continues it must keep. Light."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

from peftrun.artifacts import adapter_rules
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.config import values as config
from peftrun.config.paths import config_dir
from peftrun.config.schema import peft_fields
from peftrun.config.schema.lora import BdLoraSpec, VeloraSpec
from peftrun.config.schema.method_traits import MODULE_SETS, get_method_traits
from peftrun.formatting import format_value
from peftrun.system.versions import get_version

Settings = dict[str, Any]
HEAD_NAMES = ("classifier", "score")  # PEFT itself adds these to modules_to_save of a classifier
OF_THE_START = ("eva_config", "corda_config", "lora_ga_config")  # read only when an adapter is started
OPTIMIZER_KEYS = ("loraplus_lr_ratio", "lora_fa")  # of peftrun alone, so not in adapter_config.json
TRAINING_KEYS = (*OPTIMIZER_KEYS, "velora_config", "calibration_rows")  # may differ from one training to the next
NESTED = {"velora_config": VeloraSpec, "use_bdlora": BdLoraSpec}
DERIVED = ("fan_in_fan_out", "layers_pattern")  # follow from the layers, or only select them
OFF_VALUES = (None, False)
MAX_SHOWN = 80  # characters of an adapter's value in a message
HINT = "omit it, or train a new adapter"


def read_method(adapter: AdapterRef) -> str:
    """The value of `lora.method` that makes adapters of this type."""
    return str(adapter.config.get("peft_type", "")).lower()


def read_settings(adapter: AdapterRef, recorded: Settings | None = None) -> Settings | None:
    """The values of group `lora`; None if there is no option for its type.

    Args: recorded: group `lora` of the run that made it; of it only what its files do not hold is taken.
    """
    method = read_method(adapter)
    settings = read_defaults(method)
    if settings is None:
        return None
    own = {key: adapter.config[key] for key in settings.keys() & adapter.config.keys()}
    own |= dict.fromkeys(settings.keys() & {*OF_THE_START})
    if method == "lora":
        own |= _read_extra_settings(adapter, settings)
    if recorded and recorded.get("method") == method:
        own |= {key: recorded[key] for key in OPTIMIZER_KEYS if key in recorded}
    settings |= {key: _normalize(key, value, settings.get(key)) for key, value in own.items()}
    full = settings.get("modules_to_save")
    if full and adapter.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        settings["modules_to_save"] = [name for name in full if name not in HEAD_NAMES] or None
    return settings


def read_defaults(method: str) -> Settings | None:
    """The values of the option that is named as a method; None: there is none."""
    file = config_dir() / "lora" / f"{method}.yaml"
    return config.read_values(file) if file.is_file() else None


def _read_extra_settings(adapter: AdapterRef, listed: Settings) -> Settings:
    """Features of PEFT that the options do not list, and that are on."""
    accepted = peft_fields.get_accepted_fields("lora").keys() - listed.keys() - {*DERIVED}
    values = {key: adapter.config[key] for key in accepted & adapter.config.keys()}
    return {key: value for key, value in values.items() if value is True or (value and isinstance(value, dict | list))}


def _normalize(key: str, value: Any, default: Any) -> Any:
    if default is None and value in ({}, []):  # how PEFT writes that nothing is set
        return None
    if key in NESTED and isinstance(value, dict):
        names = [field.name for field in dataclasses.fields(NESTED[key])]
        return {name: value[name] for name in names if name in value}
    return value


def is_for_training(key: str) -> bool:
    """Whether a key of group `lora` leaves the saved adapter as it is, and may be chosen anew."""
    return key in TRAINING_KEYS or key.endswith("dropout")


def find_contradictions(adapter: AdapterRef, lora: Any) -> Iterator[str]:
    """One line for each key of group `lora` that says otherwise than the adapter."""
    settings, method = read_settings(adapter), read_method(adapter)
    fields = peft_fields.list_config_fields(method)
    if fields and (line := explain_unknown_settings(adapter, fields)):
        yield line
        return
    if settings is None:
        yield f"{adapter.option}: is of type {adapter.config.get('peft_type')}, for which group lora has no option; use it with PEFT itself"
        return
    if lora.method != method:
        yield f"lora.method={lora.method}: {adapter.option} is of method {method} and is trained further; {HINT}"
        return
    known = adapter.config | settings
    for field in dataclasses.fields(lora):
        value, own = getattr(lora, field.name), known.get(field.name)
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        if not is_for_training(field.name) and not have_same_meaning(field.name, value, own):
            yield f"lora.{field.name}={format_value(value)}: {adapter.option} has {_shorten(format_value(own))}; {HINT}"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def have_same_meaning(key: str, one: Any, other: Any) -> bool:
    """Whether two values of a key are equal; names of modules in any order."""
    if key in MODULE_SETS and isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool(one == other or (not one and not other and not isinstance(one, int | float)))


def why_not_continued(adapter: AdapterRef) -> str | None:
    """Why an adapter cannot be trained further; None if it can."""
    config_values = adapter.config
    if reason := adapter_rules.why_not_loadable(config_values):
        return reason
    if config_values.get("prefix_projection"):
        return "its file has the keys and values, not the network that computed them (prefix_projection=true); train a new adapter"
    if reason := get_method_traits(config_values.get("peft_type")).not_continued:
        return f"is of type {config_values.get('peft_type')}: {reason}; train a new adapter"
    return None


def explain_unknown_settings(adapter: AdapterRef, fields: Iterable[str]) -> str | None:
    """The line for settings that are on and that the installed PEFT lacks; None if there are none. `fields`: those that it has."""
    values, installed = adapter.config, get_version("peft")
    unknown = {key: value for key, value in values.items() if key not in fields and value not in OFF_VALUES}
    if not unknown:
        return None
    enabled = ", ".join(f"{key}={json.dumps(value)}" for key, value in unknown.items())
    version = values.get("peft_version")
    advice = (
        f"PEFT {version} wrote it: pip install peft=={version}"
        if version
        else "a newer one wrote it: pip install -U peft"
    )
    return f"{adapter.folder}: {ADAPTER_CONFIG} sets {enabled}, which PEFT {installed} does not know; {advice}"
