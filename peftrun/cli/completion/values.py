"""Values that a key may have, from its type: words, true and false, files; else the value that it has."""

import dataclasses
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from peftrun.config import shorthand
from peftrun.config.schema import actions as action_specs

TAGS = ("name", "method")


def list_values(key: str, value: str, tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """What may stand behind `key=`, where `value` is typed so far and `tree` is the configuration."""
    full = shorthand.expand_shorthand([*words, f"{key}=_"])[-1].partition("=")[0].lstrip("+")
    kind = _get_slot_type(full, tree) if full.startswith("slots.") else _find_type(full.split("."), tree)
    if full == "adapter" or action_specs.Path in _split_union(kind):
        return list_paths(value.rpartition(",")[2])
    found = [text for part in _split_union(kind) for text in _list_words(part)]
    now = _get_value(full.split("."), tree)
    return found or ([_format_value(now)] if now not in (None, "???") and not isinstance(now, dict | list) else [])


def list_paths(start: str, folders_alone: bool = False) -> list[str]:
    """Paths that begin so; a folder's ends with a slash. Hidden ones are left out until their dot is typed."""
    folder, _, begun = start.rpartition("/")
    where = Path(f"{folder}/" if start.startswith("/") or folder else ".").expanduser()
    if not where.is_dir():
        return []
    names = (one for one in sorted(where.iterdir()) if one.name.startswith(begun) and (begun or one.name[0] != "."))
    head = f"{folder}/" if "/" in start else ""
    return [f"{head}{one.name}{'/' if one.is_dir() else ''}" for one in names if one.is_dir() or not folders_alone]


def list_short_keys(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Keys of the chosen action that may be typed without `action.`."""
    names = [key for key in tree.get("action", {}) if key != "name"]
    full = shorthand.expand_shorthand([*words, *(f"{name}=_" for name in names)])[len(words) :]
    return [f"{name}=" for name, text in zip(names, full, strict=True) if text.startswith("action.")]


def _find_type(path: Sequence[str], tree: Any) -> Any:
    """The type of a key; None where there is none. Of a union the dataclass is taken whose tag the configuration has."""
    from peftrun.config.schema import run as schema

    kind: Any = schema.RunSpec
    for step in path:
        owner = next((one for one in _split_union(kind) if isinstance(one, type) and _has_field(one, step, tree)), None)
        if owner is None:
            return None
        kind = get_type_hints(owner, include_extras=True)[step]
        tree = tree.get(step) if isinstance(tree, dict) else None
    return kind


def _get_slot_type(key: str, tree: Any) -> Any:
    """The type of what a template asks for, where it has a choice to offer."""
    asked = _get_value(["template", "slots", key.removeprefix("slots."), "type"], tree)
    return {"path": action_specs.Path, "bool": bool}.get(asked)


def _has_field(owner: type, step: str, tree: Any) -> bool:
    hints = get_type_hints(owner) if dataclasses.is_dataclass(owner) else {}
    tags = [(tree.get(key), get_args(hints[key])) for key in TAGS if key in hints and isinstance(tree, dict)]
    return step in hints and all(value in words for value, words in tags if words)


def _split_union(kind: Any) -> list[Any]:
    """The types that a type is one of: itself, and those of unions."""
    if get_origin(kind) is Annotated and kind != action_specs.Path:
        return _split_union(get_args(kind)[0])
    if isinstance(kind, types.UnionType) or (get_origin(kind) is not Annotated and _is_union(kind)):
        return [part for one in get_args(kind) for part in _split_union(one)]
    return [kind]


def _is_union(kind: Any) -> bool:
    return str(get_origin(kind)) == "typing.Union"


def _list_words(kind: Any) -> Iterable[str]:
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return {bool: ["true", "false"], type(None): ["null"]}.get(kind, [])


def _get_value(path: Sequence[str], tree: Any) -> Any:
    for step in path:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
