"""JSON Schema conditions that select one of several dataclasses: by the tag, else by the options in `defaults`, else any."""

from collections.abc import Mapping
from typing import Any

from peftrun.config_tools.json_schema.values import Schema


def build_tag_condition(
    key: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema
) -> Schema:
    """The schema of a mapping that is one of several dataclasses.

    Args:
        key: the tag: `name` or `method`.
        options: value of the tag → its options in the group; empty: only the tag selects.
        inner: value of the tag → schema of its dataclass.
        any_of_them: schema if neither the tag nor the defaults select one.
    """
    known = {
        "anyOf": [
            _match_tag(key, list(inner)),
            *_match_parent_option(key, [option for names in options.values() for option in names]),
        ]
    }
    cases = [
        {
            "if": {"anyOf": [_match_tag(key, [value]), *_match_parent_option(key, options.get(value, []))]},
            "then": schema,
        }
        for value, schema in inner.items()
    ]
    # Without the outer condition, a file that selects no dataclass would match no case, and any key would be accepted.
    return {"if": known, "then": {"allOf": cases}, "else": any_of_them}


def build_override_condition(
    group: str, options: Mapping[str, list[str]], inner: Mapping[str, Schema], any_of_them: Schema
) -> Schema:
    """The schema of a root mapping whose key `group` has the dataclass of the option in `override /group: OPTION`."""
    cases = [
        {"if": _match_override(group, options[value]), "then": {"properties": {group: schema}}}
        for value, schema in inner.items()
    ]
    known = _match_override(group, [option for value in inner for option in options[value]])
    return {"if": known, "then": {"allOf": cases}, "else": {"properties": {group: any_of_them}}}


def _match_tag(key: str, values: list[str]) -> Schema:
    return {"required": [key], "properties": {key: {"enum": values}}}


def _match_parent_option(key: str, options: list[str]) -> list[Schema]:
    if not options:
        return []
    # A tag in the file takes precedence over the one of the option that it is based on.
    return [{"not": {"required": [key]}, **_match_defaults_entry({"enum": options})}]


def _match_override(group: str, options: list[str]) -> Schema:
    key = f"override /{group}"
    return _match_defaults_entry({"type": "object", "required": [key], "properties": {key: {"enum": options}}})


def _match_defaults_entry(item: dict[str, Any]) -> Schema:
    return {"required": ["defaults"], "properties": {"defaults": {"type": "array", "contains": item}}}
