"""JSON Schemas of `defaults` lists. They suggest peftrun's own options, and accept a team's."""

from peftrun.config import paths
from peftrun.config_tools.json_schema.values import Schema

OTHER_ENTRY = r"^(optional |override )*/?[\w\-./]+(@[\w.\-:]+)?$"  # any other entry that Hydra reads


def build_group_defaults(group: str) -> Schema:
    """`defaults` in a file of a group: options of the same group, and `_self_`."""
    names = [*paths.list_group_options(group), "_self_"]
    return _build_list(
        "Options of this group that this file is based on, in order; _self_: its own keys.", _suggest_names(names), {}
    )


def build_experiment_defaults() -> Schema:
    """`defaults` in an experiment: an option for each group."""
    choices = {f"override /{group}": _build_option(group) for group in paths.GROUPS if group != "experiment"}
    return _build_list(
        "Options that replace the default ones: `override /GROUP: OPTION`.",
        _suggest_names(["_self_"]),
        choices,
    )


def build_root_defaults() -> Schema:
    """`defaults` in config.yaml: an option for each group."""
    choices = {group: _build_option(group) for group in paths.GROUPS}
    return _build_list(
        "The option of each group, in the order in which they are composed.", _suggest_names(["_self_"]), choices
    )


def _build_option(group: str) -> Schema:
    choices = [*_suggest_names(paths.list_group_options(group))["anyOf"], {"type": "null"}]
    return {"description": f"An option of group {group}.", "anyOf": choices}


def _suggest_names(names: list[str]) -> Schema:
    """Names to suggest. Any other string is accepted too: a team has its own options."""
    return {"anyOf": [{"enum": names}, {"type": "string", "minLength": 1}]}


def _build_list(description: str, name: Schema, choices: dict[str, Schema]) -> Schema:
    other = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}
    entry = {
        "type": "object",
        "properties": choices,
        "patternProperties": {OTHER_ENTRY: other},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"description": description, "type": "array", "items": {"anyOf": [*name["anyOf"], entry]}}
