"""JSON Schemas of single values: pydantic's schema of a type, which also accepts interpolations and `???`."""

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter

Schema = dict[str, Any]
# An interpolation, or ??? for a value that must be typed. Without a description: editors would show it in addition to the key's.
INTERPOLATION: Schema = {"type": "string", "pattern": r"^(\$\{.+\}|\?\?\?)$"}
INTERPOLATION_NAME = "filled_in_later"
INTERPOLATION_REF: Schema = {"$ref": f"#/definitions/{INTERPOLATION_NAME}"}
OMITTED_KEYS = ("title", "default", "discriminator")  # keys of pydantic's schemas that editors do not use


def build_type_schema(value_type: Any, build_dataclass: Callable[[Any], Schema]) -> Schema:
    """The schema of a type; `build_dataclass` gives the schema of a dataclass, or of a tagged union of dataclasses."""
    if not _contains_dataclass(value_type):
        return allow_interpolation(TypeAdapter(value_type).json_schema())
    if dataclasses.is_dataclass(value_type) or get_origin(value_type) is Annotated:
        return build_dataclass(value_type)
    if get_origin(value_type) is dict:
        values = build_type_schema(get_args(value_type)[1], build_dataclass)
        return _build_alternatives([{"type": "object", "additionalProperties": values}])
    assert get_origin(value_type) in (Union, types.UnionType), value_type
    members = get_args(value_type)
    nested = [build_type_schema(member, build_dataclass) for member in members if _contains_dataclass(member)]
    plain = [TypeAdapter(member).json_schema() for member in members if not _contains_dataclass(member)]
    return _build_alternatives([*nested, *plain])


def allow_interpolation(schema: Schema) -> Schema:
    """The schema, extended to accept an interpolation or `???` for a number, an enum or a list, at any depth."""
    rest = {key: value for key, value in schema.items() if key not in OMITTED_KEYS}
    # Editors read examples only at the top of a property's schema.
    examples = {"examples": rest.pop("examples")} if "examples" in rest else {}
    choices = rest.pop("anyOf", None)
    if choices is None:
        return _build_alternatives([_allow_nested(rest)]) | examples
    examples |= {key: value for choice in choices for key, value in choice.items() if key == "examples"}
    return _build_alternatives([_allow_nested(choice) for choice in choices]) | rest | examples


def _allow_nested(schema: Schema) -> Schema:
    nested = {key: value for key, value in schema.items() if key not in (*OMITTED_KEYS, "examples")}
    for key in ("items", "additionalProperties"):
        if isinstance(nested.get(key), dict):
            nested[key] = allow_interpolation(nested[key])
    if "const" in nested:
        nested["enum"] = [nested.pop("const")]
    return nested


def _build_alternatives(choices: list[Schema]) -> Schema:
    """The choices, and an interpolation unless a choice accepts any string anyway."""
    for choice in choices:
        if choice.get("type") == "string" and not {"enum", "pattern"} & choice.keys():
            return choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"anyOf": [*choices, INTERPOLATION_REF]}


def _contains_dataclass(value_type: Any) -> bool:
    """Whether the type is a dataclass or has one among its type arguments, at any depth."""
    return dataclasses.is_dataclass(value_type) or any(map(_contains_dataclass, get_args(value_type)))
