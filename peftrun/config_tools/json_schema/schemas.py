"""The JSON Schemas (draft 7, the one that editors read) of all YAML files: one for each group, one for the table of contents."""

import dataclasses
from typing import Any

from peftrun.config.schema import actions as action_specs
from peftrun.config.schema import run as schema
from peftrun.config.schema import trackers as tracker_specs
from peftrun.config_tools.json_schema import defaults, launchers
from peftrun.config_tools.json_schema.conditionals import build_override_condition, build_tag_condition
from peftrun.config_tools.json_schema.dataclasses import (
    build_dataclass_schema,
    build_merged_schema,
    build_reference,
    collect_definitions,
    get_definition_name,
)
from peftrun.config_tools.json_schema.dedupe import format_json, share_properties
from peftrun.config_tools.json_schema.sources import (
    ACTIONS,
    METHODS,
    TRACKERS,
    get_tag,
    list_action_options,
    list_method_options,
    list_tracker_options,
)
from peftrun.config_tools.json_schema.values import INTERPOLATION, INTERPOLATION_NAME, Schema, allow_interpolation

DRAFT = "http://json-schema.org/draft-07/schema#"
PLAIN_GROUPS = {
    "model": schema.ModelSpec,
    "task": schema.TaskSpec,
    "trainer": schema.TrainerSpec,
    "device": schema.DeviceSpec,
}
UNIONS = {"lora": schema.Lora, "action": action_specs.Action, "tracker": tracker_specs.Tracker}
ADAPTER = allow_interpolation(
    {"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}
)
HYDRA: Schema = {
    "type": "object",
    "description": "Hydra's own settings: where runs and sweeps are written, which launcher.",
}


def build_schemas() -> dict[str, str]:
    """File name → text of every schema."""
    built = {group: _build_plain_schema(group, owner) for group, owner in PLAIN_GROUPS.items()}
    built |= {
        "action": _build_action_schema(),
        "lora": _build_lora_schema(),
        "tracker": _build_tracker_schema(),
        "experiment": _build_experiment_schema(),
        "config": _build_root_schema(),
    }
    built |= {"hydra-launcher": launchers.build_launcher_schema()}
    return {f"{name}.json": _render_schema(name, one) for name, one in sorted(built.items())}


def _render_schema(name: str, content: Schema) -> str:
    kind = f"peftrun: {name.replace('-', '/')}"
    held = {INTERPOLATION_NAME: INTERPOLATION, **content.pop("definitions", {})}
    whole = {"$schema": DRAFT, "title": kind, **content, "definitions": held}
    return format_json(share_properties(whole)) + "\n"


def _build_plain_schema(group: str, owner: type) -> Schema:
    held = collect_definitions(owner)
    del held[owner.__name__]
    return build_dataclass_schema(owner, {"defaults": defaults.build_group_defaults(group)}) | {"definitions": held}


def _build_action_schema() -> Schema:
    return _build_tagged_schema("action", "name", action_specs.Action, ACTIONS, list_action_options())


def _build_lora_schema() -> Schema:
    return _build_tagged_schema("lora", "method", schema.Lora, METHODS, list_method_options())


def _build_tracker_schema() -> Schema:
    return _build_tagged_schema("tracker", "name", tracker_specs.Tracker, TRACKERS, list_tracker_options())


def _build_tagged_schema(group: str, key: str, union: Any, owners: list[type], options: dict[str, list[str]]) -> Schema:
    more = {"defaults": defaults.build_group_defaults(group)}
    held = collect_definitions(union) | {owner.__name__: build_dataclass_schema(owner, more) for owner in owners}
    del held[get_definition_name(union)]
    inner = {get_tag(owner): build_reference(owner) for owner in owners}
    return {
        "type": "object",
        **build_tag_condition(key, options, inner, build_merged_schema(owners, more)),
        "definitions": held,
    }


def _build_experiment_schema() -> Schema:
    """Of a file that may set keys of every group; which keys `lora`, `action` and `tracker` have depends on its defaults."""
    root = build_dataclass_schema(schema.RunSpec, {"defaults": defaults.build_experiment_defaults(), "hydra": HYDRA})
    properties = root["properties"]
    properties["adapter"] = ADAPTER | {"description": properties["adapter"]["description"]}
    for name in UNIONS:
        properties[name] = {"description": properties[name]["description"]}
    held = collect_definitions(schema.RunSpec)
    del held[get_definition_name(schema.RunSpec)]
    conditions = [
        build_override_condition(
            "lora", list_method_options(), _build_references(METHODS), build_reference(schema.Lora)
        ),
        build_override_condition(
            "action", list_action_options(), _build_references(ACTIONS), build_reference(action_specs.Action)
        ),
        build_override_condition(
            "tracker", list_tracker_options(), _build_references(TRACKERS), build_reference(tracker_specs.Tracker)
        ),
    ]
    return root | {"allOf": conditions, "definitions": held}


def _build_root_schema() -> Schema:
    """Of the table of contents: what an experiment may set, which is referred to, with defaults of its own."""
    names = [field.name for field in dataclasses.fields(schema.RunSpec)]
    keys: Schema = {name: {"$ref": f"experiment.json#/properties/{name}"} for name in (*names, "hydra")}
    keys |= {name: {"$ref": f"experiment.json{build_reference(union)['$ref']}"} for name, union in UNIONS.items()}
    return {
        "type": "object",
        "description": "Every group that a run is composed of, and the keys that stand alone.",
        "properties": {"defaults": defaults.build_root_defaults(), **keys},
        "additionalProperties": False,
    }


def _build_references(owners: list[type]) -> dict[str, Schema]:
    return {get_tag(owner): build_reference(owner) for owner in owners}
