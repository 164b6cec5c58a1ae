"""Names that are valid on other machines: the base model's Hub id, and paths reduced to their last part. Light."""

import re
from pathlib import Path, PurePath
from typing import Any

from peftrun.artifacts.adapter_source import ExportSource

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATH_KEYS = (  # keys whose values are paths; values of other keys may begin with a slash too
    "path", "test_path", "tools", "include_path", "name_or_path", "output_dir", "resume", "finetuned_model", "run", "compare_with", "prompts_file", "deepspeed_config",
    "model_dir", "merged_into", "chat_template",
)  # fmt: skip


def hub_id(name: str | None) -> str | None:
    """`name` if it is a Hub id; None for a folder's name, or no name."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def get_recorded_base_name(source: ExportSource) -> str | None:
    """The base model's recorded name, only the last part of a local path; None if none is recorded."""
    name = source.base().get("name") or (source.config.get("base_model_name_or_path") if source.is_adapter else None)
    return shorten_path(str(name)) if name else None


def shorten_path(text: str) -> str:
    """The last part of an absolute path (Unix or Windows); any other text unchanged."""
    return PurePath(text).name if text.startswith(("/", "~")) or text[1:3] == ":\\" else text


def shorten_paths(values: Any, key: str = "") -> Any:
    """Nested values with local paths reduced to their last part. `key`: the key of `values`."""
    if isinstance(values, dict):
        return {name: shorten_paths(item, key if key == "adapter" else str(name)) for name, item in values.items()}
    return shorten_path(values) if isinstance(values, str) and key in (*PATH_KEYS, "adapter") else values


def shorten_override_paths(typed: list[str]) -> list[str]:
    """The same for overrides: `task.data.path=/home/me/rows.csv` → `task.data.path=rows.csv`."""
    shortened = []
    for text in typed:
        key, sign, value = text.partition("=")
        is_path = key.rsplit(".", 1)[-1] in (*PATH_KEYS, "adapter") or key.startswith("adapter.")
        shortened.append(f"{key}{sign}{shorten_path(value)}" if is_path else text)
    return shortened
