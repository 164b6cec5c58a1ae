"""JSON Schemas of `defaults`: the options that a YAML file builds on, those that ship named, those of a team allowed."""

from peftrun.config import paths
from peftrun.config_tools.json_schema.values import Schema

OTHER_ENTRY = r"^(optional |override )*/?[\w\-./]+(@[\w.\-:]+)?$"  # any other entry that Hydra reads


def build_group_defaults(group: str) -> Schema:
    """`defaults` of a file of a group: options of the same group, and `_self_`."""
    names = [*paths.list_group_options(group), "_self_"]
    return _build_list(
        "Options of this group that this one builds on, in order; _self_: its own keys.", _suggest_names(names), {}
    )


def build_experiment_defaults() -> Schema:
    """`defaults` of an experiment: another option for each group."""
    chosen = {f"override /{group}": _build_option(group) for group in paths.GROUPS if group != "experiment"}
    return _build_list(
        "Options that take the place of the default ones: `override /GROUP: OPTION`.",
        _suggest_names(["_self_"]),
        chosen,
    )


def build_root_defaults() -> Schema:
    """`defaults` of the table of contents: an option for each group."""
    chosen = {group: _build_option(group) for group in paths.GROUPS}
    return _build_list(
        "The option of each group, in the order in which they are composed.", _suggest_names(["_self_"]), chosen
    )


def _build_option(group: str) -> Schema:
    choices = [*_suggest_names(paths.list_group_options(group))["anyOf"], {"type": "null"}]
    return {"description": f"An option of group {group}.", "anyOf": choices}


def _suggest_names(names: list[str]) -> Schema:
    """Some names, and any other: a team has options of its own."""
    return {"anyOf": [{"enum": names}, {"type": "string", "minLength": 1}]}


def _build_list(about: str, name: Schema, chosen: dict[str, Schema]) -> Schema:
    other = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}
    entry = {
        "type": "object",
        "properties": chosen,
        "patternProperties": {OTHER_ENTRY: other},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"description": about, "type": "array", "items": {"anyOf": [*name["anyOf"], entry]}}
