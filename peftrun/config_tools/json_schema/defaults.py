"""JSON Schemas of `defaults`: the options that a YAML file builds on, those that ship named, those of a team allowed."""

from peftrun.config import paths
from peftrun.config_tools.json_schema.values import Schema

ELSEWHERE = r"^(optional |override )*/?[\w\-./]+(@[\w.\-:]+)?$"  # any other entry that Hydra reads


def of_group(group: str) -> Schema:
    """`defaults` of a file of a group: options of the same group, and `_self_`."""
    names = [*paths.group_options(group), "_self_"]
    return _list(
        "Options of this group that this one builds on, in order; _self_: its own keys.", _suggested(names), {}
    )


def of_experiment() -> Schema:
    """`defaults` of an experiment: another option for each group."""
    chosen = {f"override /{group}": _option(group) for group in paths.GROUPS if group != "experiment"}
    return _list(
        "Options that take the place of the default ones: `override /GROUP: OPTION`.", _suggested(["_self_"]), chosen
    )


def of_root() -> Schema:
    """`defaults` of the table of contents: an option for each group."""
    chosen = {group: _option(group) for group in paths.GROUPS}
    return _list("The option of each group, in the order in which they are composed.", _suggested(["_self_"]), chosen)


def _option(group: str) -> Schema:
    choices = [*_suggested(paths.group_options(group))["anyOf"], {"type": "null"}]
    return {"description": f"An option of group {group}.", "anyOf": choices}


def _suggested(names: list[str]) -> Schema:
    """Some names, and any other: a team has options of its own."""
    return {"anyOf": [{"enum": names}, {"type": "string", "minLength": 1}]}


def _list(about: str, name: Schema, chosen: dict[str, Schema]) -> Schema:
    other = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}
    entry = {
        "type": "object",
        "properties": chosen,
        "patternProperties": {ELSEWHERE: other},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"description": about, "type": "array", "items": {"anyOf": [*name["anyOf"], entry]}}
