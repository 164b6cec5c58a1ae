"""The JSON Schemas (draft 7, the one that editors read) of all YAML files: one for each group, one for the table of contents."""

import dataclasses
from typing import Any

from peftrun.config.schema import actions as action_specs
from peftrun.config.schema import run as schema
from peftrun.config.schema import trackers as tracker_specs
from peftrun.config_tools.json_schema import defaults, launchers
from peftrun.config_tools.json_schema.conditionals import by_override, by_tag
from peftrun.config_tools.json_schema.dataclasses import definition, definitions, of_any, of_owner, reference
from peftrun.config_tools.json_schema.dedupe import as_text, shared
from peftrun.config_tools.json_schema.sources import (
    ACTIONS,
    METHODS,
    TRACKERS,
    action_options,
    method_options,
    tag,
    tracker_options,
)
from peftrun.config_tools.json_schema.values import LATER, LATER_NAME, Schema, opened

DRAFT = "http://json-schema.org/draft-07/schema#"
PLAIN = {
    "model": schema.ModelSpec,
    "task": schema.TaskSpec,
    "trainer": schema.TrainerSpec,
    "device": schema.DeviceSpec,
}
UNIONS = {"lora": schema.Lora, "action": action_specs.Action, "tracker": tracker_specs.Tracker}
ADAPTER = opened(
    {"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}
)
HYDRA: Schema = {
    "type": "object",
    "description": "Hydra's own settings: where runs and sweeps are written, which launcher.",
}


def all_schemas() -> dict[str, str]:
    """File name → text of every schema."""
    built = {group: _plain(group, owner) for group, owner in PLAIN.items()}
    built |= {
        "action": _action(),
        "lora": _lora(),
        "tracker": _tracker(),
        "experiment": _experiment(),
        "config": _root(),
    }
    built |= {"hydra-launcher": launchers.of_launcher()}
    return {f"{name}.json": _text(name, one) for name, one in sorted(built.items())}


def _text(name: str, content: Schema) -> str:
    kind = f"peftrun: {name.replace('-', '/')}"
    held = {LATER_NAME: LATER, **content.pop("definitions", {})}
    whole = {"$schema": DRAFT, "title": kind, **content, "definitions": held}
    return as_text(shared(whole)) + "\n"


def _plain(group: str, owner: type) -> Schema:
    held = definitions(owner)
    del held[owner.__name__]
    return of_owner(owner, {"defaults": defaults.of_group(group)}) | {"definitions": held}


def _action() -> Schema:
    return _tagged("action", "name", action_specs.Action, ACTIONS, action_options())


def _lora() -> Schema:
    return _tagged("lora", "method", schema.Lora, METHODS, method_options())


def _tracker() -> Schema:
    return _tagged("tracker", "name", tracker_specs.Tracker, TRACKERS, tracker_options())


def _tagged(group: str, key: str, union: Any, owners: list[type], options: dict[str, list[str]]) -> Schema:
    more = {"defaults": defaults.of_group(group)}
    held = definitions(union) | {owner.__name__: of_owner(owner, more) for owner in owners}
    del held[definition(union)]
    inner = {tag(owner): reference(owner) for owner in owners}
    return {"type": "object", **by_tag(key, options, inner, of_any(owners, more)), "definitions": held}


def _experiment() -> Schema:
    """Of a file that may set keys of every group; which keys `lora`, `action` and `tracker` have depends on its defaults."""
    root = of_owner(schema.RunSpec, {"defaults": defaults.of_experiment(), "hydra": HYDRA})
    properties = root["properties"]
    properties["adapter"] = ADAPTER | {"description": properties["adapter"]["description"]}
    for name in UNIONS:
        properties[name] = {"description": properties[name]["description"]}
    held = definitions(schema.RunSpec)
    del held[definition(schema.RunSpec)]
    conditions = [
        by_override("lora", method_options(), _references(METHODS), reference(schema.Lora)),
        by_override("action", action_options(), _references(ACTIONS), reference(action_specs.Action)),
        by_override("tracker", tracker_options(), _references(TRACKERS), reference(tracker_specs.Tracker)),
    ]
    return root | {"allOf": conditions, "definitions": held}


def _root() -> Schema:
    """Of the table of contents: what an experiment may set, which is referred to, with defaults of its own."""
    names = [field.name for field in dataclasses.fields(schema.RunSpec)]
    keys: Schema = {name: {"$ref": f"experiment.json#/properties/{name}"} for name in (*names, "hydra")}
    keys |= {name: {"$ref": f"experiment.json{reference(union)['$ref']}"} for name, union in UNIONS.items()}
    return {
        "type": "object",
        "description": "Every group that a run is composed of, and the keys that stand alone.",
        "properties": {"defaults": defaults.of_root(), **keys},
        "additionalProperties": False,
    }


def _references(owners: list[type]) -> dict[str, Schema]:
    return {tag(owner): reference(owner) for owner in owners}
