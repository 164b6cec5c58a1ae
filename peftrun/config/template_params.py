"""Parameters of a team's template: declared with a type and a help text, set by `params.NAME=VALUE`. Light.

template: {name: ours/support, version: 1.2.0, params: {rows: {type: path, help: a .jsonl of columns prompt and completion}}}
params: {rows: ???}
task: {data: {path: "${params.rows}"}}
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftrun.formatting import format_value

MISSING = "???"
EXAMPLES = {"path": "PATH", "str": "TEXT", "int": "1", "float": "0.1", "bool": "true"}
KINDS: dict[str, tuple[type, ...]] = {
    "path": (str,),
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
REFERENCE = re.compile(r"\$\{params\.(\w+)\}")  # an interpolation of a parameter
FILELESS = (
    "replay",
    "explain",
    "template",
    "import",
    "check",
    "list",
    "compare",
    "browse",
)  # actions that read no data files


class MissingParam(str):
    """Value of a key that reads an unset parameter: only the parameter is reported, not the key."""


def find_unset_keys(values: dict[str, Any]) -> list[str]:
    """Full keys of leaves that read a parameter with a missing or invalid value. `values`: interpolations unresolved."""
    params, check_files = _get_mapping(values, "params"), _checks_files(values)
    unset = {name for name, value in params.items() if value == MISSING}
    unset |= {
        name
        for name, declaration in read_declared_params(values).items()
        if name in params and [*_check_value(name, params[name], declaration, check_files)]
    }
    return [
        key for key, value in _iter_leaves(values) if isinstance(value, str) and unset & {*REFERENCE.findall(value)}
    ]


def mark_missing(values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """`values`, changed in place: the leaves under `keys` become `MissingParam`."""
    for key in keys:
        *path, last = key.split(".")
        mapping: Any = values
        for name in path:
            mapping = mapping[name]
        mapping[last] = MissingParam(MISSING)
    return values


def check_params(values: dict[str, Any]) -> list[str]:
    """One line for each parameter that is not set, of another type than declared, or not declared."""
    template = values.get("template")
    declared, params = _get_mapping(template, "params"), _get_mapping(values, "params")
    lines = []
    for name, value in params.items():
        if name in declared:
            continue
        if not isinstance(template, dict):
            lines.append(explain_unknown_param(name, value, {}))
        else:
            advice = f"write `{name}: {{type: str, help: …}}` under template.params, or omit it"
            lines.append(f"params.{name}={format_value(value)}: is not declared; {advice}")
    for name, declaration in declared.items():
        if name not in params:
            lines.append(f"template.params.{name}: has no key to be set by; write `params: {{{name}: ???}}` next to it")
        elif name in read_declared_params(values):
            lines += _check_value(name, params[name], declaration, _checks_files(values))
    return lines


def read_declared_params(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → type and help of the parameters that a template declares; malformed declarations are left out."""
    declared = _get_mapping(values.get("template"), "params")
    return {
        name: declaration
        for name, declaration in declared.items()
        if isinstance(declaration, dict) and declaration.get("type") in KINDS
    }


def explain_unknown_param(name: str, value: Any, values: dict[str, Any]) -> str:
    """One line for a typed parameter that no template declares."""
    keys = [f"params.{declared}" for declared in read_declared_params(values)]
    override = f"params.{name}={format_value(value)}"
    if keys:
        return f"{override}: the template has no such parameter; parameters: {', '.join(keys)}; type {keys[0]}=VALUE"
    return f"{override}: no chosen template has it; choose one (experiment=NAME), or omit it"


def _checks_files(values: dict[str, Any]) -> bool:
    return _get_mapping(values, "action").get("name") not in FILELESS


def _check_value(name: str, value: Any, declaration: dict[str, Any], check_files: bool) -> Iterator[str]:
    """One line if a parameter is not set, has the wrong type, or names a missing file."""
    type_name, key = declaration["type"], f"params.{name}"
    advice = f"{declaration.get('help', '')} ({type_name}); type {key}={EXAMPLES[type_name]}"
    if value == MISSING:
        yield f"{key} is not set: {advice}"
        return
    # A bool is an int to Python.
    has_type = isinstance(value, KINDS[type_name]) and (type_name == "bool" or not isinstance(value, bool))
    if value is not None and not has_type:
        yield f"{key}={format_value(value)}: must be {'an' if type_name == 'int' else 'a'} {type_name}: {advice}"
    elif type_name == "path" and value and check_files and not Path(value).expanduser().exists():
        yield f"{key}={value}: there is no such file or folder: {advice}"


def _get_mapping(values: Any, key: str) -> dict[str, Any]:
    mapping = values.get(key) if isinstance(values, dict) else None
    return mapping if isinstance(mapping, dict) else {}


def _iter_leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield prefix, values
        return
    for key, value in values.items():
        yield from _iter_leaves(value, f"{prefix}.{key}" if prefix else str(key))
