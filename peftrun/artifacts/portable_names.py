"""Names that mean the same on another machine: the base's id on the Hub, and paths without the machine they are on. Light."""

import re
from pathlib import Path, PurePath
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATH_KEYS = (  # keys whose values are paths; the others are texts, which may begin with a stroke as well
    "path", "eval_path", "name_or_path", "output_dir", "resume", "tuned", "run", "against", "prompts_file", "deepspeed_config",
    "model_dir", "merged_into",
)  # fmt: skip


def hub_id(name: str | None) -> str | None:
    """A base's name where it is an id on the Hub; None where it is a folder's, or there is none."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def get_recorded_base_name(source: ExportSource) -> str | None:
    """What the base is called in what was noted, its last part where that is a path of a machine; None where nothing was noted."""
    name = source.base().get("name") or (source.config.get("base_model_name_or_path") if source.is_adapter else None)
    return shorten_path(str(name)) if name else None


def shorten_path(text: str) -> str:
    """The last part of an absolute path; anything else as it is."""
    return PurePath(text).name if text.startswith(("/", "~")) or text[1:3] == ":\\" else text


def shorten_paths(values: Any, key: str = "") -> Any:
    """Nested values in which paths of this machine are their last part alone."""
    if isinstance(values, dict):
        return {name: shorten_paths(item, key if key == "adapter" else str(name)) for name, item in values.items()}
    return shorten_path(values) if isinstance(values, str) and key in (*PATH_KEYS, "adapter") else values


def shorten_override_paths(typed: list[str]) -> list[str]:
    """The same for what was typed: `task.data.path=/home/me/rows.csv` → `task.data.path=rows.csv`."""
    return [_shorten_override(text) for text in typed]


def _shorten_override(text: str) -> str:
    key, sign, value = text.partition("=")
    if key.rsplit(".", 1)[-1] in (*PATH_KEYS, "adapter") or key.startswith("adapter."):
        return f"{key}{sign}{shorten_path(value)}"
    return text
