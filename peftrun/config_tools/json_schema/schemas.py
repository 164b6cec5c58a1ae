"""The JSON Schemas of all YAML files, one for each group and one for config.yaml. Draft 7, which editors support."""

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
    built: dict[str, Schema] = {}
    for group, owner in PLAIN_GROUPS.items():  # with one dataclass, whose schema is the root and needs no definition
        definitions = collect_definitions(owner)
        del definitions[owner.__name__]
        root = build_dataclass_schema(owner, {"defaults": defaults.build_group_defaults(group)})
        built[group] = root | {"definitions": definitions}
    # config.yaml has the keys of an experiment, by reference to its schema, with `defaults` of its own.
    names = [field.name for field in dataclasses.fields(schema.RunSpec)]
    keys: Schema = {name: {"$ref": f"experiment.json#/properties/{name}"} for name in (*names, "hydra")}
    keys |= {name: {"$ref": f"experiment.json{build_reference(union)['$ref']}"} for name, union in UNIONS.items()}
    built |= {
        "action": _build_tagged_schema("action", "name", action_specs.Action, ACTIONS, list_action_options()),
        "lora": _build_tagged_schema("lora", "method", schema.Lora, METHODS, list_method_options()),
        "tracker": _build_tagged_schema("tracker", "name", tracker_specs.Tracker, TRACKERS, list_tracker_options()),
        "experiment": _build_experiment_schema(),
        "config": {
            "type": "object",
            "description": "The groups of which a run is composed, and the top-level keys.",
            "properties": {"defaults": defaults.build_root_defaults(), **keys},
            "additionalProperties": False,
        },
    }
    built |= {"hydra-launcher": launchers.build_launcher_schema()}
    texts = {}
    for name, content in sorted(built.items()):
        definitions = {INTERPOLATION_NAME: INTERPOLATION, **content.pop("definitions", {})}
        head = {"$schema": DRAFT, "title": f"peftrun: {name.replace('-', '/')}"}
        texts[f"{name}.json"] = format_json(share_properties({**head, **content, "definitions": definitions})) + "\n"
    return texts


def _build_tagged_schema(group: str, key: str, union: Any, owners: list[type], options: dict[str, list[str]]) -> Schema:
    """A group with a union of dataclasses; the file's tag `key`, or its defaults, select one of them."""
    extra = {"defaults": defaults.build_group_defaults(group)}
    definitions = collect_definitions(union) | {
        owner.__name__: build_dataclass_schema(owner, extra) for owner in owners
    }
    del definitions[get_definition_name(union)]
    return {
        "type": "object",
        **build_tag_condition(key, options, _build_references(owners), build_merged_schema(owners, extra)),
        "definitions": definitions,
    }


def _build_experiment_schema() -> Schema:
    """A file that may set keys of all groups; which keys `lora`, `action` and `tracker` have depends on its defaults."""
    root = build_dataclass_schema(schema.RunSpec, {"defaults": defaults.build_experiment_defaults(), "hydra": HYDRA})
    properties = root["properties"]
    properties["adapter"] = ADAPTER | {"description": properties["adapter"]["description"]}
    for name in UNIONS:
        properties[name] = {"description": properties[name]["description"]}
    definitions = collect_definitions(schema.RunSpec)
    del definitions[get_definition_name(schema.RunSpec)]
    owners = {
        "lora": (METHODS, list_method_options()),
        "action": (ACTIONS, list_action_options()),
        "tracker": (TRACKERS, list_tracker_options()),
    }
    conditions = [
        build_override_condition(group, options, _build_references(members), build_reference(UNIONS[group]))
        for group, (members, options) in owners.items()
    ]
    return root | {"allOf": conditions, "definitions": definitions}


def _build_references(owners: list[type]) -> dict[str, Schema]:
    """Value of the tag → reference to the dataclass's definition."""
    return {get_tag(owner): build_reference(owner) for owner in owners}
