"""JSON Schemas of single values: what pydantic says of a type, opened for what Hydra fills in later."""

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter

Schema = dict[str, Any]
# An interpolation, or ???: to be given on the command line. Without words of its own: editors would show these beside the key's.
LATER: Schema = {"type": "string", "pattern": r"^(\$\{.+\}|\?\?\?)$"}
LATER_NAME = "filled_in_later"
LATER_REF: Schema = {"$ref": f"#/definitions/{LATER_NAME}"}
NOTES = ("title", "default", "discriminator")  # of pydantic's, of no use to an editor


def of_type(kind: Any, of_dataclass: Callable[[Any], Schema]) -> Schema:
    """The schema of a type; `of_dataclass` gives that of a dataclass, or of a union of dataclasses that a tag tells apart."""
    if not _dataclasses(kind):
        return opened(TypeAdapter(kind).json_schema())
    if dataclasses.is_dataclass(kind) or get_origin(kind) is Annotated:
        return of_dataclass(kind)
    if get_origin(kind) is dict:
        return _alternatives([{"type": "object", "additionalProperties": of_type(get_args(kind)[1], of_dataclass)}])
    assert get_origin(kind) in (Union, types.UnionType), kind
    others = [one for one in get_args(kind) if not _dataclasses(one)]
    inner = [of_type(one, of_dataclass) for one in get_args(kind) if _dataclasses(one)]
    return _alternatives([*inner, *(TypeAdapter(one).json_schema() for one in others)])


def opened(schema: Schema) -> Schema:
    """A schema that takes an interpolation, or `???`, wherever it takes a number, a word of some or a list."""
    kept = {key: value for key, value in schema.items() if key not in NOTES}
    examples = {"examples": kept.pop("examples")} if "examples" in kept else {}
    choices = kept.pop("anyOf", None)
    if choices is None:
        return _alternatives([_inside(kept)]) | examples
    examples |= {key: value for one in choices for key, value in one.items() if key == "examples"}
    return _alternatives([_inside(one) for one in choices]) | kept | examples


def _inside(schema: Schema) -> Schema:
    kept = {key: value for key, value in schema.items() if key not in (*NOTES, "examples")}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = opened(kept[key])
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    return kept


def _alternatives(choices: list[Schema]) -> Schema:
    if any(_takes_any_text(one) for one in choices):
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"anyOf": [*choices, LATER_REF]}


def _takes_any_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and not {"enum", "pattern"} & schema.keys()


def _dataclasses(kind: Any) -> bool:
    """Whether there is a dataclass in a type, however deep."""
    return dataclasses.is_dataclass(kind) or any(_dataclasses(one) for one in get_args(kind))
