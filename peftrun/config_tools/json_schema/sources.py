"""Where each dataclass of the configuration is described: its YAML file in `conf/`, and the library that its fields are handed to."""

import ast
import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from peftrun.config import paths
from peftrun.config.schema import actions as action_specs
from peftrun.config.schema import lora as lora_methods
from peftrun.config.schema import objectives
from peftrun.config.schema import run as schema
from peftrun.config.schema import trackers as tracker_specs
from peftrun.config_tools.json_schema.yaml_comments import YamlKey, read_keys

TRAILING = re.compile(r"#\s?(.*)$")
YAML_FILES: dict[type, tuple[str, str]] = {  # the file, and the key in it below which the dataclass's own keys lie
    schema.RunSpec: ("config.yaml", ""),
    schema.ModelSpec: ("model/pretrained.yaml", ""),
    schema.TaskSpec: ("task/instruction.yaml", ""),
    schema.LmEvalSpec: ("task/lm_eval.yaml", "lm_eval."),
    schema.DataSpec: ("task/instruction.yaml", "data."),
    schema.TrainerSpec: ("trainer/default.yaml", ""),
    schema.DeviceSpec: ("device/auto.yaml", ""),
    lora_methods.EvaSpec: ("lora/eva.yaml", "eva_config."),
    lora_methods.CordaSpec: ("lora/corda.yaml", "corda_config."),
    lora_methods.LoraGaSpec: ("lora/lora_ga.yaml", "lora_ga_config."),
    lora_methods.VeloraSpec: ("lora/velora.yaml", "velora_config."),
    lora_methods.BdLoraSpec: ("lora/bdlora.yaml", "use_bdlora."),
}


def get_union_members(union: Any) -> list[type]:
    """The dataclasses of a union that a tag tells apart, in order."""
    inner = get_args(union)[0] if hasattr(union, "__metadata__") else union
    return list(get_args(inner))


ACTIONS, METHODS, OBJECTIVES, TRACKERS = (
    get_union_members(union)
    for union in (action_specs.Action, schema.Lora, objectives.Objective, tracker_specs.Tracker)
)


def get_tag(owner: type) -> str:
    """The name that a dataclass of a union goes by: of an action, a method, an objective."""
    hints = get_type_hints(owner)
    return str(get_args(hints["method" if "method" in hints else "name"])[0])


@cache
def read_yaml_keys(owner: type) -> dict[str, YamlKey]:
    """Field → what its YAML file says of it, and the value that it has there."""
    name, prefix = _find_yaml_file(owner)
    found = _read_with_inherited(paths.config_dir() / name) if name else {}
    return {key.removeprefix(prefix): one for key, one in found.items() if key.startswith(prefix)}


def _read_with_inherited(path: Path) -> dict[str, YamlKey]:
    """What a file says of its keys, and of those of the option that it builds on."""
    parent = _find_parent(path)
    return (_read_with_inherited(parent) if parent else {}) | read_keys(path)


@cache
def read_field_comments(owner: type) -> dict[str, str]:
    """Field → the comment behind it in the source of its dataclass, those of the dataclasses it builds on included."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if dataclasses.is_dataclass(kind):
            found |= _parse_source_comments(kind)
    return found


def _parse_source_comments(kind: type) -> dict[str, str]:
    lines = inspect.getsource(kind).splitlines()
    body = ast.parse("\n".join(lines)).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    ends = {node.target.id: (node.end_lineno or 0) - 1 for node in fields}  # type: ignore[union-attr]
    comments = {name: TRAILING.search(lines[row]) for name, row in ends.items()}
    return {name: one[1] for name, one in comments.items() if one and not one[1].startswith("fmt:")}


def _find_yaml_file(owner: type) -> tuple[str, str]:
    if owner in YAML_FILES:
        return YAML_FILES[owner]
    if owner in ACTIONS:
        return f"action/{get_tag(owner)}.yaml", ""
    if owner in TRACKERS:
        return f"tracker/{get_tag(owner)}.yaml", ""
    if owner in OBJECTIVES:
        return f"task/{get_tag(owner)}.yaml", "objective."
    return (f"lora/{list_method_options()[get_tag(owner)][0]}.yaml", "") if owner in METHODS else ("", "")


@cache
def list_method_options() -> dict[str, list[str]]:
    """Method → the options of group `lora` that are of it; the one that says so itself first."""
    return _list_options("lora", "method")


@cache
def list_action_options() -> dict[str, list[str]]:
    """Action → the options of group `action` that are of it."""
    return _list_options("action", "name")


@cache
def list_tracker_options() -> dict[str, list[str]]:
    """Tracker → the options of group `tracker` that are of it."""
    return _list_options("tracker", "name")


def _list_options(group: str, key: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    inherited: list[Path] = []
    for path in paths.list_group_files(group):
        own = read_keys(path).get(key)
        if own:
            found.setdefault(str(own.value), []).append(path.stem)
        else:
            inherited.append(path)
    for path in inherited:
        found[_read_inherited(path, key)].append(path.stem)
    return found


def _read_inherited(path: Path, key: str) -> str:
    """The value of a key in a file, or in the option that it builds on."""
    parent, own = _find_parent(path), read_keys(path).get(key)
    assert own or parent, path
    return str(own.value) if own else _read_inherited(parent, key)  # type: ignore[arg-type]


def _find_parent(path: Path) -> Path | None:
    """The option of the same group that a file names first in its defaults."""
    above = re.search(r"^  - (?!_self_)(\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return path.with_name(f"{above[1]}.yaml") if above else None
