"""Candidate values of a key, from its type: literals, booleans, files; else its current value."""

import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from peftrun.config import shorthand
from peftrun.config.schema import actions as action_specs

TAGS = ("name", "method")  # fields that tell the dataclasses of a union apart


def list_values(key: str, value: str, tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Values for `key=`. `value`: typed so far; `tree`: the composed config."""
    full = shorthand.expand_overrides([*words, f"{key}=_"])[0][-1].partition("=")[0].lstrip("+")
    value_type = _find_type(full.split("."), tree)
    if full.startswith("params."):  # a template's parameter, whose type is declared in the template
        param_type = _get_value(["template", "params", full.removeprefix("params."), "type"], tree)
        value_type = {"path": action_specs.Path, "bool": bool}.get(param_type)
    if full == "adapter" or action_specs.Path in _split_union(value_type):
        return list_paths(value.rpartition(",")[2])
    literals: list[str] = []
    for member in _split_union(value_type):
        if get_origin(member) is Literal:
            literals += map(str, get_args(member))
        literals += {bool: ["true", "false"], type(None): ["null"]}.get(member, [])
    current = _get_value(full.split("."), tree)
    if literals or current in (None, "???") or isinstance(current, dict | list):
        return literals
    return [str(current).lower() if isinstance(current, bool) else str(current)]


def list_paths(start: str, folders_alone: bool = False) -> list[str]:
    """Paths with this beginning; folders end with a slash. Hidden ones only if their dot is typed."""
    folder, _, prefix = start.rpartition("/")
    parent = Path(f"{folder}/" if start.startswith("/") or folder else ".").expanduser()
    if not parent.is_dir():
        return []
    matches = (
        path for path in sorted(parent.iterdir()) if path.name.startswith(prefix) and (prefix or path.name[0] != ".")
    )
    head = f"{folder}/" if "/" in start else ""
    return [
        f"{head}{path.name}{'/' if path.is_dir() else ''}" for path in matches if path.is_dir() or not folders_alone
    ]


def list_short_keys(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Keys of the chosen action that may be typed without `action.`."""
    names = [key for key in tree.get("action", {}) if key != "name"]
    full = shorthand.expand_shorthand([*words, *(f"{name}=_" for name in names)])[len(words) :]
    return [f"{name}=" for name, text in zip(names, full, strict=True) if text.startswith("action.")]


def _find_type(path: Sequence[str], tree: Any) -> Any:
    """The type of a key; None if there is none. In a union of dataclasses the one whose tag the config has."""
    from peftrun.config.schema import run as schema

    value_type: Any = schema.RunSpec
    for name in path:
        members = _split_union(value_type)
        owner = next(
            (member for member in members if isinstance(member, type) and _has_field(member, name, tree)), None
        )
        if owner is None:
            return None
        value_type = get_type_hints(owner, include_extras=True)[name]
        tree = tree.get(name) if isinstance(tree, dict) else None
    return value_type


def _has_field(owner: type, name: str, tree: Any) -> bool:
    hints = get_type_hints(owner) if dataclasses.is_dataclass(owner) else {}
    tags = [(tree.get(key), get_args(hints[key])) for key in TAGS if key in hints and isinstance(tree, dict)]
    return name in hints and all(value in literals for value, literals in tags if literals)


def _split_union(value_type: Any) -> list[Any]:
    """The members of a union, nested ones included; any other type is its own only member."""
    origin = get_origin(value_type)
    if origin is Annotated and value_type != action_specs.Path:  # a path is an annotated str, and stays whole
        return _split_union(get_args(value_type)[0])
    # `X | Y` is a types.UnionType, but typing makes Optional[X] and unions of forward references a typing.Union.
    if isinstance(value_type, types.UnionType) or origin is Union:
        return [member for argument in get_args(value_type) for member in _split_union(argument)]
    return [value_type]


def _get_value(path: Sequence[str], tree: Any) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
