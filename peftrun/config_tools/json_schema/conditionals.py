"""Which dataclass a mapping is of: told by its tag, else by the options that it builds on, else any of them."""

from collections.abc import Mapping
from typing import Any

from peftrun.config_tools.json_schema.values import Schema


def build_tag_condition(
    key: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema
) -> Schema:
    """The schema of a mapping that is of one of several dataclasses.

    Args:
        key: the tag: `name` or `method`.
        options: value of the tag → options of the group that are of it; without any: the tag alone tells.
        inner: value of the tag → the schema that then holds.
    """
    known = {
        "anyOf": [
            _match_tag(key, list(inner)),
            *_match_parent_option(key, [one for all_ in options.values() for one in all_]),
        ]
    }
    cases = [
        {
            "if": {"anyOf": [_match_tag(key, [value]), *_match_parent_option(key, options.get(value, []))]},
            "then": schema,
        }
        for value, schema in inner.items()
    ]
    return {"if": known, "then": {"allOf": cases}, "else": any_of_them}


def build_override_condition(
    group: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema
) -> Schema:
    """The schema of a root mapping whose key `group` is of the option that `override /group` names in its defaults."""
    cases = [
        {"if": _match_override(group, options[value]), "then": {"properties": {group: schema}}}
        for value, schema in inner.items()
    ]
    known = _match_override(group, [one for value in inner for one in options[value]])
    return {"if": known, "then": {"allOf": cases}, "else": {"properties": {group: any_of_them}}}


def _match_tag(key: str, values: list[str]) -> Schema:
    return {"required": [key], "properties": {key: {"enum": values}}}


def _match_parent_option(key: str, options: list[str]) -> list[Schema]:
    if not options:
        return []
    return [{"not": {"required": [key]}, **_match_defaults_entry({"enum": options})}]


def _match_override(group: str, options: list[str]) -> Schema:
    key = f"override /{group}"
    return _match_defaults_entry({"type": "object", "required": [key], "properties": {key: {"enum": options}}})


def _match_defaults_entry(item: dict[str, Any]) -> Schema:
    return {"required": ["defaults"], "properties": {"defaults": {"type": "array", "contains": item}}}
