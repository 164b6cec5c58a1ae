"""Reads an `adapter_config.json` as PEFT's config, without silently ignoring a key."""

import inspect
import json

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peftrun import console
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.errors import AdapterError
from peftrun.system.versions import get_version

OFF_VALUES = (None, False)


def read_peft_config(adapter: AdapterRef) -> PeftConfig:
    """The config. Keys of a newer PEFT that are off are reported, since PEFT's own warning is suppressed.

    Raises: AdapterError: one of them is on, so that the adapter would compute something else without it.
    """
    values, folder = adapter.config, adapter.folder
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(values.get("peft_type"))
    fields = inspect.signature(config_class).parameters if config_class else values
    unknown = {key: value for key, value in values.items() if key not in fields}
    enabled = [f"{key}={json.dumps(value)}" for key, value in unknown.items() if value not in OFF_VALUES]
    installed, version = get_version("peft"), values.get("peft_version")
    if enabled:
        advice = (
            f"; PEFT {version} wrote it: pip install peft=={version}"
            if version
            else "; a newer one wrote it: pip install -U peft"
        )
        raise AdapterError(
            f"{folder}: {ADAPTER_CONFIG} sets {', '.join(enabled)}, which PEFT {installed} does not know{advice}"
        )
    if unknown:
        console.print_info(
            f"{folder}: {', '.join(unknown)} of {ADAPTER_CONFIG} are not known to PEFT {installed}, and off"
        )
    return PeftConfig.from_pretrained(str(folder))
