"""What a team's template asks whoever uses it to fill in: declared with a type and a help text, set by `slots.NAME=VALUE`. Light.

template: {name: ours/support, version: 1.2.0, slots: {rows: {type: path, help: a .jsonl of columns prompt and completion}}}
slots: {rows: ???}
task: {data: {path: "${slots.rows}"}}
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MISSING = "???"
EXAMPLES = {"path": "PATH", "str": "TEXT", "int": "1", "float": "0.1", "bool": "true"}
KINDS: dict[str, tuple[type, ...]] = {
    "path": (str,),
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
REFERENCE = re.compile(r"\$\{slots\.(\w+)\}")  # an interpolation of a slot
FILELESS = (
    "replay",
    "explain",
    "template",
    "check",
    "list",
    "compare",
    "browse",
)  # actions that look for no files


class MissingParam(str):
    """The value of a key that reads such a slot: the slot is what is told."""


def find_unset_keys(values: dict[str, Any]) -> list[str]:
    """Keys of leaves, in values whose interpolations are unresolved, that read a slot without a value, or with a wrong one."""
    given, look = _get_mapping(values, "slots"), _looks_for_files(values)
    open_slots = {name for name, value in given.items() if value == MISSING}
    open_slots |= {
        name
        for name, slot in read_declared_params(values).items()
        if name in given and [*_check_value(name, given[name], slot, look)]
    }
    return [
        key
        for key, value in _iter_leaves(values)
        if isinstance(value, str) and open_slots & {*REFERENCE.findall(value)}
    ]


def mark_missing(values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """`values`, whose leaves under `keys` now say that they wait for a slot."""
    for key in keys:
        *path, last = key.split(".")
        holder: Any = values
        for part in path:
            holder = holder[part]
        holder[last] = MissingParam(MISSING)
    return values


def check_params(values: dict[str, Any]) -> list[str]:
    """One line for each slot that is not set, not what it is declared to be, or not declared."""
    template = values.get("template")
    declared, given = _get_mapping(template, "slots"), _get_mapping(values, "slots")
    lines = [_explain_undeclared(name, value, template) for name, value in given.items() if name not in declared]
    for name, slot in declared.items():
        if name not in given:
            lines.append(f"template.slots.{name}: has no key to be set by; write `slots: {{{name}: ???}}` beside it")
        elif name in read_declared_params(values):
            lines += _check_value(name, given[name], slot, _looks_for_files(values))
    return lines


def read_declared_params(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → type and help of the slots that a template declares; those that are not written as such are left out."""
    declared = _get_mapping(values.get("template"), "slots")
    return {name: slot for name, slot in declared.items() if isinstance(slot, dict) and slot.get("type") in KINDS}


def explain_unknown_param(name: str, value: Any, values: dict[str, Any]) -> str:
    """One line for a slot that is typed and that no template asks for."""
    known = [f"slots.{one}" for one in read_declared_params(values)]
    key = f"slots.{name}={_format_value(value)}"
    if known:
        return f"{key}: the template has no such slot; slots: {', '.join(known)}; type {known[0]}=VALUE"
    return f"{key}: no template is chosen that asks for it; choose one (experiment=NAME), or omit it"


def _looks_for_files(values: dict[str, Any]) -> bool:
    return _get_mapping(values, "action").get("name") not in FILELESS


def _check_value(name: str, value: Any, slot: dict[str, Any], look: bool) -> Iterator[str]:
    kind, key = slot["type"], f"slots.{name}"
    what = f"{slot.get('help', '')} ({kind}); type {key}={EXAMPLES[kind]}"
    if value == MISSING:
        yield f"{key} is not set: {what}"
    elif value is not None and not _matches_type(value, kind):
        yield f"{key}={_format_value(value)}: must be {'an' if kind == 'int' else 'a'} {kind}: {what}"
    elif kind == "path" and value and look and not Path(value).expanduser().exists():
        yield f"{key}={value}: there is no such file or folder: {what}"


def _matches_type(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))


def _explain_undeclared(name: str, value: Any, template: Any) -> str:
    if not isinstance(template, dict):
        return explain_unknown_param(name, value, {})
    return f"slots.{name}={_format_value(value)}: is declared nowhere; write `{name}: {{type: str, help: …}}` under template.slots, or omit it"


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _get_mapping(values: Any, key: str) -> dict[str, Any]:
    found = values.get(key) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _iter_leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield prefix, values
        return
    for key, value in values.items():
        yield from _iter_leaves(value, f"{prefix}.{key}" if prefix else str(key))
