"""Which dataclass a mapping is of: told by its tag, else by the options that it builds on, else any of them."""

from collections.abc import Mapping
from typing import Any

from peftrun.config_tools.json_schema.values import Schema


def by_tag(key: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema) -> Schema:
    """The schema of a mapping that is of one of several dataclasses.

    Args:
        key: the tag: `name` or `method`.
        options: value of the tag → options of the group that are of it; without any: the tag alone tells.
        inner: value of the tag → the schema that then holds.
    """
    known = {
        "anyOf": [_tagged(key, list(inner)), *_building_on(key, [one for all_ in options.values() for one in all_])]
    }
    cases = [
        {"if": {"anyOf": [_tagged(key, [value]), *_building_on(key, options.get(value, []))]}, "then": schema}
        for value, schema in inner.items()
    ]
    return {"if": known, "then": {"allOf": cases}, "else": any_of_them}


def by_override(
    group: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema
) -> Schema:
    """The schema of a root mapping whose key `group` is of the option that `override /group` names in its defaults."""
    cases = [
        {"if": _overridden(group, options[value]), "then": {"properties": {group: schema}}}
        for value, schema in inner.items()
    ]
    known = _overridden(group, [one for value in inner for one in options[value]])
    return {"if": known, "then": {"allOf": cases}, "else": {"properties": {group: any_of_them}}}


def _tagged(key: str, values: list[str]) -> Schema:
    return {"required": [key], "properties": {key: {"enum": values}}}


def _building_on(key: str, options: list[str]) -> list[Schema]:
    if not options:
        return []
    return [{"not": {"required": [key]}, **_in_defaults({"enum": options})}]


def _overridden(group: str, options: list[str]) -> Schema:
    key = f"override /{group}"
    return _in_defaults({"type": "object", "required": [key], "properties": {key: {"enum": options}}})


def _in_defaults(item: dict[str, Any]) -> Schema:
    return {"required": ["defaults"], "properties": {"defaults": {"type": "array", "contains": item}}}
