"""Rules for a training that continues an adapter, its parent. Light."""

from collections.abc import Iterator
from typing import Any

from peftrun.artifacts import adapter_settings, lineage
from peftrun.artifacts.adapter_folder import AdapterRef
from peftrun.artifacts.run_layout import PEFTRUN_METADATA
from peftrun.config.schema import run as schema

Lines = Iterator[str]


def check_parent(action: Any, lora: Any, adapter: dict[str, str], adapters: dict[str, AdapterRef]) -> Lines:
    """One adapter, which can be trained further, with its own method and size."""
    if action.name != "train":
        return
    if len(adapter) > 1:
        yield f"adapter: action=train continues one adapter, and {len(adapter)} are named; type adapter=PATH, or combine them first (action=combine)"
        return
    for parent in adapters.values() if not action.stack else ():
        if isinstance(lora, schema.NoAdapter):
            yield f"lora=none: {parent.option} is an adapter, which is trained further as it is; omit lora=none"
        elif repeated := lineage.find_cycle(parent):
            yield f"{parent.option}: is recorded as trained from {lineage.format_ancestor(repeated)}, which leads back to it; restore {PEFTRUN_METADATA}"
        elif reason := adapter_settings.why_not_continued(parent):
            yield f"{parent.option}: {reason}"
        else:
            yield from adapter_settings.find_contradictions(parent, lora)
