"""JSON Schemas of dataclasses: their fields with what is said of them; nothing is required, for files are partial."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from peftrun.config import paths
from peftrun.config.paths import first_sentence
from peftrun.config.schema import peft_fields
from peftrun.config_tools.json_schema.conditionals import by_tag
from peftrun.config_tools.json_schema.library_help import help_of
from peftrun.config_tools.json_schema.sources import (
    ACTIONS,
    METHODS,
    OBJECTIVES,
    TRACKERS,
    field_comments,
    members,
    method_options,
    said,
    tag,
)
from peftrun.config_tools.json_schema.values import LATER_REF, Schema, of_type, opened

TAGS = ("name", "method")
UNIONS = {ACTIONS[0]: "Action", METHODS[0]: "Method", OBJECTIVES[0]: "Objective", TRACKERS[0]: "Tracker"}


def of_owner(owner: type, more: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping with a dataclass's fields, and `more` keys; others are refused."""
    properties = {**(more or {}), **{name: _property(owner, name, kind) for name, kind in _fields(owner).items()}}
    properties |= {name: one for name, one in _beside(owner).items() if name not in properties}
    return {
        "type": "object",
        "description": about(owner),
        "properties": properties,
        "additionalProperties": False,
    }


def of_any(owners: Sequence[type], more: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a mapping that holds fields of any of some dataclasses; the tag is one of theirs."""
    found: dict[str, list[Schema]] = {}
    for owner in owners:
        for name, one in of_owner(owner)["properties"].items():
            found.setdefault(name, []).append(one)
    properties = {name: _tag(owners) if _is_tag(owners[0], name) else _merged(all_) for name, all_ in found.items()}
    return {"type": "object", "properties": {**(more or {}), **properties}, "additionalProperties": False}


def about(owner: type) -> str:
    """What a dataclass is, in words: of a method the first line of its YAML file, else its docstring."""
    if owner in METHODS:
        return first_sentence(paths.config_dir() / "lora" / f"{method_options()[tag(owner)][0]}.yaml")
    return " ".join((owner.__doc__ or "").split())


def description(owner: type, field: str) -> str | None:
    """What is said of a field: by us, then by the library that it is handed to; None where nobody says anything."""
    own = said(owner).get(field)
    ours = (own.comment if own else None) or field_comments(owner).get(field) or _by_its_type(owner, field)
    return "\n\n".join(text for text in (ours, help_of(owner).get(field)) if text) or None


def definition(kind: Any) -> str:
    """The name under which a schema holds a dataclass, or a union of dataclasses that a tag tells apart."""
    return kind.__name__ if dataclasses.is_dataclass(kind) else UNIONS[members(kind)[0]]  # type: ignore[union-attr]


def definitions(*kinds: Any) -> dict[str, Schema]:
    """Name → schema of every dataclass that is found in some types, however deep."""
    found: dict[str, Schema] = {}
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            found |= {definition(kind): of_owner(kind)} | definitions(*_fields(kind).values())
        elif get_origin(kind) is Annotated and _fits_union(kind):
            found |= {definition(kind): of_union(kind)} | definitions(*members(kind))
        else:
            found |= definitions(*get_args(kind))
    return found


def of_union(union: Any) -> Schema:
    """The schema of a mapping of one of several dataclasses, told by its tag, wherever it stands."""
    owners = members(union)
    key = "method" if "method" in _fields(owners[0]) else "name"
    return by_tag(key, {}, {tag(owner): reference(owner) for owner in owners}, of_any(owners))


def _beside(owner: type) -> dict[str, Schema]:
    """The fields of PEFT's config of a method that its YAML file does not show."""
    kinds = peft_fields.of_method(tag(owner)) if owner in METHODS else {}
    texts = help_of(owner)
    return {name: opened(_inlined(kind)) | _described(texts.get(name)) for name, kind in kinds.items()}


def _inlined(kind: Any) -> Schema:
    """The schema of a type with the mappings in it where they are used."""
    schema = TypeAdapter(kind).json_schema()
    text, held = json.dumps(schema), schema.get("$defs", {})
    for name, one in held.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(one))
    return {key: value for key, value in json.loads(text).items() if key != "$defs"}


def _described(text: str | None) -> Schema:
    return {"description": text} if text else {}


def reference(kind: Any) -> Schema:
    """What stands where the schema of a dataclass belongs, which is held once."""
    return {"$ref": f"#/definitions/{definition(kind)}"}


def _fields(owner: type) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _property(owner: type, field: str, kind: Any) -> Schema:
    schema = of_type(kind, reference)
    if "$ref" in schema:  # draft 7 reads nothing that stands beside a reference
        schema = {"allOf": [schema]}
    text, own = description(owner, field), said(owner).get(field)
    schema |= _described(text)
    plain = own is not None and own.value not in (None, "???") and not _is_tag(owner, field)
    return schema | ({"default": own.value} if plain and own else {})


def _by_its_type(owner: type, field: str) -> str | None:
    if _is_tag(owner, field):
        return about(owner)
    kind = _fields(owner)[field]
    inner = next((one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)), None)
    return about(inner) if isinstance(inner, type) else None


def _is_tag(owner: type, field: str) -> bool:
    kind = get_type_hints(owner)[field] if field in TAGS and field in get_type_hints(owner) else None
    return len(get_args(kind)) == 1 and isinstance(get_args(kind)[0], str)


def _tag(owners: Sequence[type]) -> Schema:
    words = {"enum": [tag(owner) for owner in owners], "enumDescriptions": [about(owner) for owner in owners]}
    return {"anyOf": [words, LATER_REF], "description": "Which of them it is; the other keys depend on it."}


def _merged(schemas: list[Schema]) -> Schema:
    """One schema for a key that several have: what any of them takes, described as by the first."""
    notes = {key: schemas[0][key] for key in ("description", "default", "examples") if key in schemas[0]}
    bare = [{key: value for key, value in one.items() if key not in notes} for one in schemas]
    distinct = [one for index, one in enumerate(bare) if one not in bare[:index]]
    return schemas[0] if len(distinct) == 1 else {"anyOf": distinct} | notes


def _fits_union(kind: Any) -> bool:
    return bool(members(kind)) and all(dataclasses.is_dataclass(one) for one in members(kind))
