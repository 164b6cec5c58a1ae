"""Reads an `adapter_config.json` as PEFT's config, without silently ignoring a key."""

import inspect

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peftrun import console
from peftrun.artifacts import adapter_settings
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.errors import AdapterError
from peftrun.system.versions import get_version


def read_peft_config(adapter: AdapterRef) -> PeftConfig:
    """The config. Keys of a newer PEFT that are off are reported, since PEFT's own warning is suppressed.

    Raises: AdapterError: one of them is on, so that the adapter would compute something else without it.
    """
    values, folder = adapter.config, adapter.folder
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(values.get("peft_type"))
    fields = inspect.signature(config_class).parameters if config_class else values
    if line := adapter_settings.explain_unknown_settings(adapter, fields):
        raise AdapterError(line)
    unknown = [key for key in values if key not in fields]
    if unknown:
        console.print_info(
            f"{folder}: {', '.join(unknown)} of {ADAPTER_CONFIG} are not known to PEFT {get_version('peft')}, and off"
        )
    return PeftConfig.from_pretrained(str(folder))
