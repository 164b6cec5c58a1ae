"""JSON Schemas of dataclasses, with descriptions of their fields. No key is required, because files are partial."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from peftrun.config import paths
from peftrun.config.paths import read_first_sentence
from peftrun.config.schema import model_fields, peft_fields, trainer_fields
from peftrun.config.schema import run as schema_run
from peftrun.config_tools.json_schema.conditionals import build_tag_condition
from peftrun.config_tools.json_schema.library_help import get_arguments_help, get_library_help
from peftrun.config_tools.json_schema.sources import (
    ACTIONS,
    METHODS,
    OBJECTIVES,
    TRACKERS,
    get_tag,
    get_union_members,
    list_method_options,
    read_field_comments,
    read_yaml_keys,
)
from peftrun.config_tools.json_schema.values import INTERPOLATION_REF, Schema, allow_interpolation, build_type_schema

MODEL_TYPES = ("bert", "gpt2", "llama", "qwen3")  # of `conf/model`
TAG_FIELDS = ("name", "method")
UNION_NAMES = {ACTIONS[0]: "Action", METHODS[0]: "Method", OBJECTIVES[0]: "Objective", TRACKERS[0]: "Tracker"}


def build_dataclass_schema(owner: type, extra: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping with a dataclass's fields and the `extra` keys; other keys are refused."""
    properties = {**(extra or {})}
    for name, field_type in _get_field_types(owner).items():
        schema = build_type_schema(field_type, build_reference)
        if name == "arguments":
            schema = _build_arguments_schema(owner)
        if "$ref" in schema:  # draft 7 ignores all other keys next to a $ref
            schema = {"allOf": [schema]}
        properties[name] = schema | _build_description(describe_field(owner, name))
        key = read_yaml_keys(owner).get(name)
        if key is not None and key.value not in (None, "???") and not _is_tag(owner, name):
            properties[name]["default"] = key.value
    # Fields of PEFT's config of the method that its YAML file does not list.
    if owner in METHODS:
        helps = get_library_help(owner)
        for name, field_type in peft_fields.get_accepted_fields(get_tag(owner)).items():
            if name not in properties:
                schema = allow_interpolation(_inline_definitions(field_type))
                properties[name] = schema | _build_description(helps.get(name))
    return {
        "type": "object",
        "description": describe_dataclass(owner),
        "properties": properties,
        "additionalProperties": False,
    }


def _build_arguments_schema(owner: type) -> Schema:
    """The schema of `trainer.arguments` or `model.arguments`: fields of any training config, or of the kinds of models in `conf/model`."""
    helps = get_arguments_help() if owner is schema_run.TrainerSpec else {}
    properties = {
        name: allow_interpolation(_inline_definitions(kind))
        | _build_description(helps.get(name, f"transformers: `{name}` of the model's config or of its loader."))
        for name, kind in sorted(list_argument_types(owner).items())
    }
    # Other kinds of models have other fields.
    return {
        "anyOf": [
            {"type": "object", "properties": properties, "additionalProperties": owner is schema_run.ModelSpec},
            {"type": "null"},
            INTERPOLATION_REF,
        ]
    }


def list_argument_types(owner: type) -> dict[str, Any]:
    """Name → type, of all that the `arguments` of a trainer or of a model may hold."""
    if owner is schema_run.TrainerSpec:
        configs = (trainer_fields.PLAIN, trainer_fields.SUPERVISED, *trainer_fields.CONFIGS.values())
        return {
            name: kind for config in configs for name, kind in trainer_fields.get_accepted_arguments(config).items()
        }
    return {
        name: kind
        for model_type in MODEL_TYPES
        for name, kind in model_fields.get_accepted_arguments({"model_type": model_type}).items()
    }


def build_merged_schema(owners: Sequence[type], extra: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping that may have the fields of any of the dataclasses: for files whose tag is not known."""
    schemas: dict[str, list[Schema]] = {}
    for owner in owners:
        for name, property_schema in build_dataclass_schema(owner)["properties"].items():
            schemas.setdefault(name, []).append(property_schema)
    tags = {
        "enum": [get_tag(owner) for owner in owners],
        "enumDescriptions": [describe_dataclass(owner) for owner in owners],  # shown by VS Code
    }
    tag = {"anyOf": [tags, INTERPOLATION_REF], "description": "Selects one of them; the other keys depend on it."}
    properties = {}
    for name, alternatives in schemas.items():
        # What any of the schemas accepts, with the annotations of the first.
        first = alternatives[0]
        annotations = {key: first[key] for key in ("description", "default", "examples") if key in first}
        types = [{key: item[key] for key in item if key not in annotations} for item in alternatives]
        distinct = [item for index, item in enumerate(types) if item not in types[:index]]
        merged = first if len(distinct) == 1 else {"anyOf": distinct} | annotations
        properties[name] = tag if _is_tag(owners[0], name) else merged
    return {"type": "object", "properties": {**(extra or {}), **properties}, "additionalProperties": False}


def describe_dataclass(owner: type) -> str:
    """A description of a dataclass: for a method the first line of its YAML file, else its docstring."""
    if owner in METHODS:
        return read_first_sentence(paths.config_dir() / "lora" / f"{list_method_options()[get_tag(owner)][0]}.yaml")
    return " ".join((owner.__doc__ or "").split())


def describe_field(owner: type, field: str) -> str | None:
    """The description of a field: our comment, then the library's help. None: there is neither."""
    key = read_yaml_keys(owner).get(field)
    ours = (key.comment if key else None) or read_field_comments(owner).get(field)
    if not ours and _is_tag(owner, field):
        ours = describe_dataclass(owner)
    elif not ours:
        field_type = _get_field_types(owner)[field]
        nested = next((part for part in (field_type, *get_args(field_type)) if dataclasses.is_dataclass(part)), None)
        ours = describe_dataclass(nested) if isinstance(nested, type) else None
    return "\n\n".join(text for text in (ours, get_library_help(owner).get(field)) if text) or None


def get_definition_name(owner: Any) -> str:
    """The name of the definition of a dataclass, or of a tagged union of dataclasses."""
    return owner.__name__ if dataclasses.is_dataclass(owner) else UNION_NAMES[get_union_members(owner)[0]]  # type: ignore[union-attr]


def collect_definitions(*types: Any) -> dict[str, Schema]:
    """Name → schema of every dataclass in the types, at any depth."""
    definitions: dict[str, Schema] = {}
    for value_type in types:
        if dataclasses.is_dataclass(value_type):
            assert isinstance(value_type, type)
            definitions[get_definition_name(value_type)] = build_dataclass_schema(value_type)
            definitions |= collect_definitions(*_get_field_types(value_type).values())
        elif (
            get_origin(value_type) is Annotated
            and (members := get_union_members(value_type))
            and all(map(dataclasses.is_dataclass, members))
        ):
            definitions[get_definition_name(value_type)] = build_union_schema(value_type)
            definitions |= collect_definitions(*members)
        else:
            definitions |= collect_definitions(*get_args(value_type))
    return definitions


def build_union_schema(union: Any) -> Schema:
    """The schema of a mapping that is one of several dataclasses, selected by its tag."""
    owners = get_union_members(union)
    key = "method" if "method" in _get_field_types(owners[0]) else "name"
    return build_tag_condition(
        key, {}, {get_tag(owner): build_reference(owner) for owner in owners}, build_merged_schema(owners)
    )


def _inline_definitions(value_type: Any) -> Schema:
    """pydantic's schema of a type, with every reference to `$defs` replaced by its definition."""
    schema = TypeAdapter(value_type).json_schema()
    text = json.dumps(schema)
    for name, definition in schema.get("$defs", {}).items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    return {key: value for key, value in json.loads(text).items() if key != "$defs"}


def _build_description(text: str | None) -> Schema:
    return {"description": text} if text else {}


def build_reference(owner: Any) -> Schema:
    """A reference to the definition of a dataclass, or of a tagged union of dataclasses."""
    return {"$ref": f"#/definitions/{get_definition_name(owner)}"}


def _get_field_types(owner: type) -> dict[str, Any]:
    # include_extras keeps pydantic's constraints, which are in typing.Annotated.
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _is_tag(owner: type, field: str) -> bool:
    """Whether the field is the tag of a union: a Literal with a single string."""
    values = get_args(get_type_hints(owner).get(field)) if field in TAG_FIELDS else ()
    return len(values) == 1 and isinstance(values[0], str)
