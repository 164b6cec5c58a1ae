"""Validates the values of a group against its schema; each error is one line: key, value, rule, what to type instead. Light."""

import dataclasses
import json
import re
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from peftrun.checks import peer_keys
from peftrun.checks.unknown_keys import explain_unknown_key, quote_for_shell
from peftrun.config import shorthand
from peftrun.config.schema import peft_fields
from peftrun.config.schema import run as schema
from peftrun.config.schema.functions import FUNCTION_REFERENCE
from peftrun.config.template_params import MISSING
from peftrun.formatting import format_value

QUOTE_ADVICE = " (write it in quotes: YAML reads a bare no, off or 012 as another type than a string)"
PLAIN_ITEM = re.compile(r"[\w., /:-]+")  # of a list, needs no quotes in an override
SCALAR_KEYS = {"task.data": "task.data.path", "task.objective": "task"}  # a mapping → the key meant by a scalar
PYDANTIC_PHRASES = {  # pydantic's wording → ours
    f"String should match pattern '{FUNCTION_REFERENCE.pattern}'": "FILE.py:FUNCTION",
    "Input should be an object": "must be a mapping {name: VALUE}",
    "Input should be a valid array": "must be a list",
    "Input should be": "must be",
    "Input should": "must",
    "String should": "must",
    "List should": "must",
    "Value should": "must",
    "Input tag": "name",
}


def list_groups() -> list[str]:
    """The groups and top-level keys of a configuration."""
    return list(_get_types(schema.RunSpec))


def validate_group(group: str, values: Any) -> tuple[dict[str, Any], list[str]]:
    """({group: typed values}, []), or ({}, one line for each error)."""
    value_type = _get_types(schema.RunSpec)[group]
    owner = next((spec for spec in _list_dataclasses(value_type) if _is_selected(spec, values)), None)
    if owner:
        value_type = owner  # of a union, whose other classes need no validator then
        # PEFT's source is parsed only if keys are left that are no fields of the class.
        extra = set(values) - set(_get_types(owner)) if group == "lora" else set()
        fields = sorted(extra & set(peft_fields.get_accepted_fields(values["method"]))) if extra else []
        if fields:
            value_type = peft_fields.extend_spec_class(owner, values["method"], tuple(fields))
    try:
        # JSON in strict mode: a string is no number, but an int is a float and a list becomes the declared type.
        return {group: _get_type_adapter(group, value_type).validate_json(json.dumps(values), strict=True)}, []
    except ValidationError as error:
        return {}, _explain_errors(group, values, value_type, error)


@cache
def _get_types(owner: type) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


@cache
def _get_type_adapter(group: str, value_type: Any) -> TypeAdapter[Any]:
    """pydantic's validator of a group; cached, since building one is slow and a sweep validates many cells."""
    return TypeAdapter(value_type)


def explain_type_errors(group: str, values: Any, value_type: Any) -> list[str]:
    """One line for each error in values of a group whose types are known only from other groups."""
    try:
        _get_type_adapter(group, value_type).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        return _explain_errors(group, values, value_type, error)
    return []


def suggest_value(key: str, values: dict[str, Any]) -> Any:
    """An example value for a key that is not set, from its type's `examples`."""
    group, *path = key.split(".")
    example = _find_example(_resolve_key_type(_get_types(schema.RunSpec).get(group), path, values.get(group)))
    return "VALUE" if example is None else example


def _explain_errors(group: str, values: Any, value_type: Any, error: ValidationError) -> list[str]:
    rules: dict[str, list[str]] = {}
    lines = []
    # A union reports an error for each of its types; those of one key are joined by "or" in one line.
    for item in error.errors(include_url=False):
        # The parts of the error's location that are keys of the values (the others name types), and the value there.
        path: list[str] = []
        value = values
        for step in item["loc"]:
            if isinstance(value, dict) and step in value:
                value = value[step]
                path.append(str(step))
        key = ".".join([group, *path])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(_explain_unexpected(group, value_type, path, value, values))
        elif item["type"] == "missing":
            rules.setdefault(f"{key}.{item['loc'][-1]} is not set", [])
        elif value != MISSING:
            shown = format_value(value)
            message = str(item["msg"])
            for theirs, ours in PYDANTIC_PHRASES.items():
                message = message.replace(theirs, ours)
            if item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
                message += QUOTE_ADVICE
            rules.setdefault(f"{key}={shown}", []).append(message)
    for entry, messages in rules.items():
        name, _, text = entry.removesuffix(" is not set").partition("=")
        advice = _suggest_fix(name, text, _resolve_key_type(value_type, name.split(".")[1:], values))
        lines.append(f"{entry}{': ' if messages else ''}{' or '.join(dict.fromkeys(messages))}{advice}")
    return lines


def _suggest_fix(name: str, value: str, value_type: Any) -> str:
    """ "; type KEY=VALUE" for a key of this type; empty if no value can be suggested."""
    if name in SCALAR_KEYS and value and value[0] not in "{[":
        return f"; type {quote_for_shell(f'{SCALAR_KEYS[name]}={value}')}"
    if name == "template" and value and value[0] != "{":
        # LLaMA-Factory's `template` names a chat template.
        return (
            f"; other tools name a chat template here; type model.chat_template={value}, or omit it for the model's own"
        )
    types, example = (value_type, *_list_inner_types(value_type)), _find_example(value_type)
    if example is None and value:
        example = _find_nearest(value_type, value)
    if example is None and get_origin(value_type) is dict:
        example = "{NAME: VALUE}"
    if example is None and bool in types:
        return f"; type {name}=true or {name}=false"
    if example is None and any(get_origin(part) is dict for part in types):
        example = "{NAME: VALUE}"
    lists = [part for part in types if get_origin(part) is list]
    if example is None and any(get_origin(item) in (list, tuple) for part in lists for item in get_args(part)):
        example = "[[VALUE,VALUE]]"
    if example is None and value and value[0] not in "[{" and lists:
        example = f"[{value}]" if PLAIN_ITEM.fullmatch(value) else f"[{json.dumps(value, ensure_ascii=False)}]"
    return "" if example is None else f"; type {quote_for_shell(f'{name}={example}')}"


def _resolve_key_type(value_type: Any, path: list[str], values: Any) -> Any:
    """The type of a key; of several dataclasses in a union that of the selected one. None: there is no such key."""
    for step in path:
        owners = [owner for owner in _list_dataclasses(value_type) if step in _get_types(owner)]
        owners = [owner for owner in owners if _is_selected(owner, values)] or owners
        value_type = _get_types(owners[0])[step] if owners else None
        values = values.get(step) if isinstance(values, dict) else None
    return value_type


def takes_list(key: str) -> bool:
    """Whether this key may hold a list."""
    group, *path = key.split(".")
    value_type = _resolve_key_type(_get_types(schema.RunSpec).get(group), path, None)
    return any(get_origin(part) is list for part in (value_type, *_list_inner_types(value_type)))


def _find_example(value_type: Any) -> Any:
    """The first of the `examples` in the type's pydantic Field, or None."""
    for part in (value_type, *get_args(value_type)):
        for metadata in getattr(part, "__metadata__", ()):  # of typing.Annotated
            if isinstance(metadata, FieldInfo) and metadata.examples:
                return metadata.examples[0]
    return None


def _find_nearest(value_type: Any, value: str) -> str | None:
    """The literals of a type that are spelled most like the typed value, in brackets if the type is a list."""
    parts = [value_type, *_list_inner_types(value_type)]
    literals = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if not literals:
        return None
    typed_words = [peer_keys.VALUES.get(word.strip(' "'), word.strip(' "')) for word in value.strip("[]").split(",")]
    nearest = [(get_close_matches(word, literals, n=1, cutoff=0.4) or literals[:1])[0] for word in typed_words]
    return f"[{','.join(nearest)}]" if any(get_origin(part) is list for part in parts) else nearest[0]


def _list_inner_types(value_type: Any) -> list[Any]:
    """All type arguments, at any depth; fields of dataclasses are not included."""
    return [inner for part in get_args(value_type) for inner in (part, *_list_inner_types(part))]


def _list_dataclasses(value_type: Any) -> list[type]:
    if get_origin(value_type) is Annotated:
        return _list_dataclasses(get_args(value_type)[0])
    is_leaf = dataclasses.is_dataclass(value_type) or is_typeddict(value_type)
    return [value_type] if is_leaf else [inner for arg in get_args(value_type) for inner in _list_dataclasses(arg)]


def _explain_unexpected(group: str, value_type: Any, path: list[str], value: Any, values: Any) -> str:
    key, method = ".".join([group, *path]), values.get("method") if group == "lora" else None
    reason = peft_fields.explain_unsupported(method, path[-1]) if method and len(path) == 1 else None
    shown = format_value(value)
    if reason:
        return f"{key}={shown}: is a field of PEFT that peftrun does not support: {reason}; omit it"
    actions = shorthand.list_actions_with(path[0]) if group == "action" and len(path) == 1 else []
    if actions:  # set by an experiment, since a typed one was refused before
        is_of = f"is a key of action={', '.join(actions)}, not of the chosen action={values.get('name')}"
        return f"{key}={shown}: {is_of}; type ~{key}, or action={actions[0]}"
    parents = path[:-1]
    owners = _list_dataclasses(value_type)
    for step in parents:
        # A name that users choose, as in task.data.mixture.NAME, is no field: what it names has the type that was found already.
        owners = [inner for owner in owners for inner in _list_dataclasses(_get_types(owner).get(step))] or owners
    owners = [owner for owner in owners if _is_selected(owner, values)] or owners
    known_keys = [".".join([group, *parents, name]) for owner in owners for name in _get_types(owner)]
    if method and len(path) == 1:
        known_keys += [f"lora.{name}" for name in peft_fields.get_accepted_fields(method)]
    return explain_unknown_key(key, shown, known_keys)


def _is_selected(owner: type, values: Any) -> bool:
    """Whether the values' tag (`name` or `method`, the first field of a union's dataclasses) selects this dataclass."""
    tag = next(iter(_get_types(owner).items()), None)
    return bool(tag and isinstance(values, dict) and values.get(tag[0]) in get_args(tag[1]))
