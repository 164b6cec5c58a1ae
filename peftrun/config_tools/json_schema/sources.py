"""Descriptions of the dataclasses' fields: the comments in `conf/*.yaml`, and those in the dataclasses' source."""

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
YAML_FILES: dict[type, tuple[str, str]] = {  # dataclass → YAML file that lists its keys, and the prefix of those keys
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
    """The members of a union, in order."""
    plain = get_args(union)[0] if hasattr(union, "__metadata__") else union  # of Annotated[A | B, …]
    return list(get_args(plain))


ACTIONS, METHODS, OBJECTIVES, TRACKERS = (
    get_union_members(union)
    for union in (action_specs.Action, schema.Lora, objectives.Objective, tracker_specs.Tracker)
)


def get_tag(owner: type) -> str:
    """The value of a dataclass's tag: the name of an action, method, objective or tracker."""
    hints = get_type_hints(owner)
    return str(get_args(hints["method" if "method" in hints else "name"])[0])


@cache
def read_yaml_keys(owner: type) -> dict[str, YamlKey]:
    """Field → its comment and value in the dataclass's YAML file."""
    name, prefix = _find_yaml_file(owner)
    keys = _read_with_inherited(paths.config_dir() / name) if name else {}
    return {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}


def _read_with_inherited(path: Path) -> dict[str, YamlKey]:
    """The keys of a file and of the options that it is based on."""
    parent = _find_parent(path)
    return (_read_with_inherited(parent) if parent else {}) | read_keys(path)


@cache
def read_field_comments(owner: type) -> dict[str, str]:
    """Field → its trailing comment in the source of the dataclass or of its base classes."""
    comments: dict[str, str] = {}
    for ancestor in filter(dataclasses.is_dataclass, reversed(owner.__mro__)):
        # The ast has no comments, so it gives the last line of each field, and that line is searched.
        lines = inspect.getsource(ancestor).splitlines()
        body = ast.parse("\n".join(lines)).body[0]
        assert isinstance(body, ast.ClassDef)
        fields = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        ends = {node.target.id: (node.end_lineno or 0) - 1 for node in fields}  # type: ignore[union-attr]
        matches = {name: TRAILING.search(lines[row]) for name, row in ends.items()}
        comments |= {name: match[1] for name, match in matches.items() if match and not match[1].startswith("fmt:")}
    return comments


def _find_yaml_file(owner: type) -> tuple[str, str]:
    """The YAML file that lists a dataclass's keys, and their prefix there; ("", "") if there is none."""
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
    """Method → its options in group `lora`; the one that sets `method` itself comes first."""
    return _list_options("lora", "method")


@cache
def list_action_options() -> dict[str, list[str]]:
    """Action → its options in group `action`."""
    return _list_options("action", "name")


@cache
def list_tracker_options() -> dict[str, list[str]]:
    """Tracker → its options in group `tracker`."""
    return _list_options("tracker", "name")


def _list_options(group: str, key: str) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    files = paths.list_group_files(group)
    # Files that set the tag themselves come first: describe_dataclass uses the first option's description.
    for path in sorted(files, key=lambda path: key not in read_keys(path)):
        options.setdefault(_read_inherited(path, key), []).append(path.stem)
    return options


def _read_inherited(path: Path, key: str) -> str:
    """The value of a key in a file, or in the option that it is based on."""
    parent, own = _find_parent(path), read_keys(path).get(key)
    assert own or parent, path
    return str(own.value) if own else _read_inherited(parent, key)  # type: ignore[arg-type]


def _find_parent(path: Path) -> Path | None:
    """The option of the same group that comes first in the file's defaults."""
    match = re.search(r"^  - (?!_self_)(\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return path.with_name(f"{match[1]}.yaml") if match else None
