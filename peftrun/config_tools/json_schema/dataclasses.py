"""JSON Schemas of dataclasses: their fields with what is said of them; nothing is required, for files are partial."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from peftrun.config import paths
from peftrun.config.paths import read_first_sentence
from peftrun.config.schema import peft_fields
from peftrun.config_tools.json_schema.conditionals import build_tag_condition
from peftrun.config_tools.json_schema.library_help import get_library_help
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

TAG_FIELDS = ("name", "method")
UNION_NAMES = {ACTIONS[0]: "Action", METHODS[0]: "Method", OBJECTIVES[0]: "Objective", TRACKERS[0]: "Tracker"}


def build_dataclass_schema(owner: type, more: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping with a dataclass's fields, and `more` keys; others are refused."""
    properties = {
        **(more or {}),
        **{name: _build_property(owner, name, kind) for name, kind in _get_field_types(owner).items()},
    }
    properties |= {name: one for name, one in _build_unlisted_properties(owner).items() if name not in properties}
    return {
        "type": "object",
        "description": describe_dataclass(owner),
        "properties": properties,
        "additionalProperties": False,
    }


def build_merged_schema(owners: Sequence[type], more: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping that holds fields of any of some dataclasses; the tag is one of theirs."""
    found: dict[str, list[Schema]] = {}
    for owner in owners:
        for name, one in build_dataclass_schema(owner)["properties"].items():
            found.setdefault(name, []).append(one)
    properties = {
        name: _build_tag_property(owners) if _is_tag(owners[0], name) else _merge_schemas(all_)
        for name, all_ in found.items()
    }
    return {"type": "object", "properties": {**(more or {}), **properties}, "additionalProperties": False}


def describe_dataclass(owner: type) -> str:
    """What a dataclass is, in words: of a method the first line of its YAML file, else its docstring."""
    if owner in METHODS:
        return read_first_sentence(paths.config_dir() / "lora" / f"{list_method_options()[get_tag(owner)][0]}.yaml")
    return " ".join((owner.__doc__ or "").split())


def describe_field(owner: type, field: str) -> str | None:
    """What is said of a field: by us, then by the library that it is handed to; None where nobody says anything."""
    own = read_yaml_keys(owner).get(field)
    ours = (own.comment if own else None) or read_field_comments(owner).get(field) or _describe_field_type(owner, field)
    return "\n\n".join(text for text in (ours, get_library_help(owner).get(field)) if text) or None


def get_definition_name(kind: Any) -> str:
    """The name under which a schema holds a dataclass, or a union of dataclasses that a tag tells apart."""
    return kind.__name__ if dataclasses.is_dataclass(kind) else UNION_NAMES[get_union_members(kind)[0]]  # type: ignore[union-attr]


def collect_definitions(*kinds: Any) -> dict[str, Schema]:
    """Name → schema of every dataclass that is found in some types, however deep."""
    found: dict[str, Schema] = {}
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            found |= {get_definition_name(kind): build_dataclass_schema(kind)} | collect_definitions(
                *_get_field_types(kind).values()
            )
        elif get_origin(kind) is Annotated and _is_dataclass_union(kind):
            found |= {get_definition_name(kind): build_union_schema(kind)} | collect_definitions(
                *get_union_members(kind)
            )
        else:
            found |= collect_definitions(*get_args(kind))
    return found


def build_union_schema(union: Any) -> Schema:
    """The schema of a mapping of one of several dataclasses, told by its tag, wherever it stands."""
    owners = get_union_members(union)
    key = "method" if "method" in _get_field_types(owners[0]) else "name"
    return build_tag_condition(
        key, {}, {get_tag(owner): build_reference(owner) for owner in owners}, build_merged_schema(owners)
    )


def _build_unlisted_properties(owner: type) -> dict[str, Schema]:
    """The fields of PEFT's config of a method that its YAML file does not show."""
    kinds = peft_fields.get_accepted_fields(get_tag(owner)) if owner in METHODS else {}
    texts = get_library_help(owner)
    return {
        name: allow_interpolation(_inline_definitions(kind)) | _build_description(texts.get(name))
        for name, kind in kinds.items()
    }


def _inline_definitions(kind: Any) -> Schema:
    """The schema of a type with the mappings in it where they are used."""
    schema = TypeAdapter(kind).json_schema()
    text, held = json.dumps(schema), schema.get("$defs", {})
    for name, one in held.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(one))
    return {key: value for key, value in json.loads(text).items() if key != "$defs"}


def _build_description(text: str | None) -> Schema:
    return {"description": text} if text else {}


def build_reference(kind: Any) -> Schema:
    """What stands where the schema of a dataclass belongs, which is held once."""
    return {"$ref": f"#/definitions/{get_definition_name(kind)}"}


def _get_field_types(owner: type) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _build_property(owner: type, field: str, kind: Any) -> Schema:
    schema = build_type_schema(kind, build_reference)
    if "$ref" in schema:  # draft 7 reads nothing that stands beside a reference
        schema = {"allOf": [schema]}
    text, own = describe_field(owner, field), read_yaml_keys(owner).get(field)
    schema |= _build_description(text)
    plain = own is not None and own.value not in (None, "???") and not _is_tag(owner, field)
    return schema | ({"default": own.value} if plain and own else {})


def _describe_field_type(owner: type, field: str) -> str | None:
    if _is_tag(owner, field):
        return describe_dataclass(owner)
    kind = _get_field_types(owner)[field]
    inner = next((one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)), None)
    return describe_dataclass(inner) if isinstance(inner, type) else None


def _is_tag(owner: type, field: str) -> bool:
    kind = get_type_hints(owner)[field] if field in TAG_FIELDS and field in get_type_hints(owner) else None
    return len(get_args(kind)) == 1 and isinstance(get_args(kind)[0], str)


def _build_tag_property(owners: Sequence[type]) -> Schema:
    words = {
        "enum": [get_tag(owner) for owner in owners],
        "enumDescriptions": [describe_dataclass(owner) for owner in owners],
    }
    return {"anyOf": [words, INTERPOLATION_REF], "description": "Which of them it is; the other keys depend on it."}


def _merge_schemas(schemas: list[Schema]) -> Schema:
    """One schema for a key that several have: what any of them takes, described as by the first."""
    notes = {key: schemas[0][key] for key in ("description", "default", "examples") if key in schemas[0]}
    bare = [{key: value for key, value in one.items() if key not in notes} for one in schemas]
    distinct = [one for index, one in enumerate(bare) if one not in bare[:index]]
    return schemas[0] if len(distinct) == 1 else {"anyOf": distinct} | notes


def _is_dataclass_union(kind: Any) -> bool:
    return bool(get_union_members(kind)) and all(dataclasses.is_dataclass(one) for one in get_union_members(kind))
