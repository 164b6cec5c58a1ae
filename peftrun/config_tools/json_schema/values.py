"""JSON Schemas of single values: what pydantic says of a type, opened for what Hydra fills in later."""

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter

Schema = dict[str, Any]
# An interpolation, or ???: to be given on the command line. Without words of its own: editors would show these beside the key's.
INTERPOLATION: Schema = {"type": "string", "pattern": r"^(\$\{.+\}|\?\?\?)$"}
INTERPOLATION_NAME = "filled_in_later"
INTERPOLATION_REF: Schema = {"$ref": f"#/definitions/{INTERPOLATION_NAME}"}
OMITTED_KEYS = ("title", "default", "discriminator")  # of pydantic's, of no use to an editor


def build_type_schema(kind: Any, of_dataclass: Callable[[Any], Schema]) -> Schema:
    """The schema of a type; `of_dataclass` gives that of a dataclass, or of a union of dataclasses that a tag tells apart."""
    if not _contains_dataclass(kind):
        return allow_interpolation(TypeAdapter(kind).json_schema())
    if dataclasses.is_dataclass(kind) or get_origin(kind) is Annotated:
        return of_dataclass(kind)
    if get_origin(kind) is dict:
        return _build_alternatives(
            [{"type": "object", "additionalProperties": build_type_schema(get_args(kind)[1], of_dataclass)}]
        )
    assert get_origin(kind) in (Union, types.UnionType), kind
    others = [one for one in get_args(kind) if not _contains_dataclass(one)]
    inner = [build_type_schema(one, of_dataclass) for one in get_args(kind) if _contains_dataclass(one)]
    return _build_alternatives([*inner, *(TypeAdapter(one).json_schema() for one in others)])


def allow_interpolation(schema: Schema) -> Schema:
    """A schema that takes an interpolation, or `???`, wherever it takes a number, a word of some or a list."""
    kept = {key: value for key, value in schema.items() if key not in OMITTED_KEYS}
    examples = {"examples": kept.pop("examples")} if "examples" in kept else {}
    choices = kept.pop("anyOf", None)
    if choices is None:
        return _build_alternatives([_allow_nested(kept)]) | examples
    examples |= {key: value for one in choices for key, value in one.items() if key == "examples"}
    return _build_alternatives([_allow_nested(one) for one in choices]) | kept | examples


def _allow_nested(schema: Schema) -> Schema:
    kept = {key: value for key, value in schema.items() if key not in (*OMITTED_KEYS, "examples")}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = allow_interpolation(kept[key])
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    return kept


def _build_alternatives(choices: list[Schema]) -> Schema:
    if any(_accepts_any_text(one) for one in choices):
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"anyOf": [*choices, INTERPOLATION_REF]}


def _accepts_any_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and not {"enum", "pattern"} & schema.keys()


def _contains_dataclass(kind: Any) -> bool:
    """Whether there is a dataclass in a type, however deep."""
    return dataclasses.is_dataclass(kind) or any(_contains_dataclass(one) for one in get_args(kind))
