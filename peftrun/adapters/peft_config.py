"""An adapter's `adapter_config.json` as PEFT's own config, with nothing in it passed over."""

import inspect
import json
from pathlib import Path

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peftrun import console
from peftrun.artifacts.run_layout import ADAPTER_CONFIG
from peftrun.errors import AdapterError
from peftrun.io.atomic_files import read_json
from peftrun.system.versions import get_version

OFF_VALUES = (None, False)


def read_peft_config(folder: Path) -> PeftConfig:
    """The config; keys of a newer PEFT that are off are said, as PEFT itself warns of them where nobody hears it.

    Raises: AdapterError: one of those is on, and the adapter would answer otherwise without it.
    """
    values = read_json(folder / ADAPTER_CONFIG)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(values.get("peft_type"))
    known = inspect.signature(kind).parameters if kind else values
    unknown = {key: value for key, value in values.items() if key not in known}
    needed = [f"{key}={json.dumps(value)}" for key, value in unknown.items() if value not in OFF_VALUES]
    installed, wrote = get_version("peft"), values.get("peft_version")
    if needed:
        by = (
            f"; PEFT {wrote} wrote it: pip install peft=={wrote}"
            if wrote
            else "; a newer one wrote it: pip install -U peft"
        )
        raise AdapterError(
            f"{folder}: {ADAPTER_CONFIG} sets {', '.join(needed)}, which PEFT {installed} does not know{by}"
        )
    if unknown:
        console.print_info(
            f"{folder}: {', '.join(unknown)} of {ADAPTER_CONFIG} are not known to PEFT {installed}, and off"
        )
    return PeftConfig.from_pretrained(str(folder))
