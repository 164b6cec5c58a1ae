"""The values of a group against its types in the schema, and each misfit in one line: key, value, rule, what to type instead. Light."""

import dataclasses
import json
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from peftrun.checks import peer_keys
from peftrun.checks.unknown_keys import explain_unknown_key, quote_for_shell
from peftrun.config.schema import peft_fields
from peftrun.config.schema import run as schema
from peftrun.config.template_params import MISSING

QUOTE_ADVICE = " (write it in quotes: YAML reads a bare no, off or 012 as something else than text)"
SCALAR_KEYS = {
    "task.data": "task.data.path",
    "task.objective": "task",
}  # mappings → the key of what is typed in their place
PYDANTIC_PHRASES = {  # pydantic's words in ours
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
    """The groups and keys at the top of a configuration."""
    return list(_get_types(schema.RunSpec))


def validate_group(group: str, given: Any) -> tuple[dict[str, Any], list[str]]:
    """The group → its values as typed, nothing where some do not fit; and one line for each of those."""
    kind = _resolve_group_type(group, given)
    try:
        return {group: _get_type_adapter(group, kind).validate_json(json.dumps(given), strict=True)}, []
    except ValidationError as error:
        return {}, _explain_errors(group, given, kind, error)


@cache
def _get_types(owner: type) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


@cache
def _get_type_adapter(group: str, kind: Any) -> TypeAdapter[Any]:
    """Checks and types the values of a group; made once, since a sweep has many cells."""
    return TypeAdapter(kind)


def _resolve_group_type(group: str, given: Any) -> Any:
    """The type of a group; of `lora` the method's dataclass with what else PEFT's config has, where that is given."""
    kind = _get_types(schema.RunSpec)[group]
    owner = next((one for one in _list_dataclasses(kind) if group == "lora" and _is_selected(one, given)), None)
    more = set(given) - set(_get_types(owner)) if owner else set()
    known = sorted(more & set(peft_fields.get_accepted_fields(given["method"]))) if more else []
    return peft_fields.extend_spec_class(owner, given["method"], tuple(known)) if owner and known else kind


def suggest_value(key: str, values: dict[str, Any]) -> Any:
    """What is typed for a key that has no value, as its type offers."""
    group, *path = key.split(".")
    found = _find_example(_resolve_key_type(_get_types(schema.RunSpec).get(group), path, values.get(group)))
    return "VALUE" if found is None else found


def _explain_errors(group: str, given: Any, kind: Any, error: ValidationError) -> list[str]:
    rules: dict[str, list[str]] = {}
    lines = []
    for item in error.errors(include_url=False):
        path, value = _resolve_location(given, item["loc"])
        key = ".".join([group, *path])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(_explain_unexpected(group, kind, path, value, given))
        elif item["type"] == "missing":
            rules.setdefault(f"{key}.{item['loc'][-1]} is not set", [])
        elif value != MISSING:
            rules.setdefault(f"{key}={_format_value(value)}", []).append(_translate_message(item))
    lines += [_format_line(key, list(dict.fromkeys(rule)), kind, given) for key, rule in rules.items()]
    return lines


def _resolve_location(given: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The part of an error's location that names keys of the input (the rest names types), and the value there."""
    path: list[str] = []
    for step in location:
        if isinstance(given, dict) and step in given:
            given = given[step]
            path.append(str(step))
    return path, given


def _translate_message(item: Any) -> str:
    message = str(item["msg"])
    for theirs, ours in PYDANTIC_PHRASES.items():
        message = message.replace(theirs, ours)
    return message + QUOTE_ADVICE * (item["type"] == "string_type" and isinstance(item["input"], bool | int | float))


def _format_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) or value is None else str(value)


def _format_line(key: str, rules: list[str], kind: Any, given: Any) -> str:
    name, _, value = key.removesuffix(" is not set").partition("=")
    advice = _suggest_fix(name, value, _resolve_key_type(kind, name.split(".")[1:], given))
    return f"{key}{': ' if rules else ''}{' or '.join(rules)}{advice}"


def _suggest_fix(name: str, value: str, kind: Any) -> str:
    """What to type for a key of this type."""
    if name in SCALAR_KEYS and value and value[0] not in "{[":
        return f"; type {quote_for_shell(f'{SCALAR_KEYS[name]}={value}')}"
    if name == "template" and value and value[0] != "{":
        return "; another tool's, which names a chat template: the model's own is used, so omit it"
    kinds, example = (kind, *_list_inner_types(kind)), _find_example(kind)
    if example is None and value:
        example = _find_nearest(kind, value)
    if example is None and bool in kinds:
        return f"; type {name}=true or {name}=false"
    if example is None and any(get_origin(one) is dict for one in kinds):
        example = "{NAME: VALUE}"
    if example is None and value and value[0] not in "[{" and any(get_origin(one) is list for one in kinds):
        example = f"[{value}]"
    return "" if example is None else f"; type {quote_for_shell(f'{name}={example}')}"


def _resolve_key_type(kind: Any, path: list[str], given: Any) -> Any:
    """The type of a key, in the chosen one of several dataclasses that have it; None where no type is known."""
    for step in path:
        owners = [owner for owner in _list_dataclasses(kind) if step in _get_types(owner)]
        owners = [owner for owner in owners if _is_selected(owner, given)] or owners
        kind = _get_types(owners[0])[step] if owners else None
        given = given.get(step) if isinstance(given, dict) else None
    return kind


def takes_list(key: str) -> bool:
    """Whether this key may hold a list."""
    group, *path = key.split(".")
    kind = _resolve_key_type(_get_types(schema.RunSpec).get(group), path, None)
    return any(get_origin(one) is list for one in (kind, *_list_inner_types(kind)))


def _find_example(kind: Any) -> Any:
    """What the schema offers as a sensible value."""
    for part in (kind, *get_args(kind)):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, FieldInfo) and note.examples:
                return note.examples[0]
    return None


def _find_nearest(kind: Any, value: str) -> str | None:
    """Of the words that a type offers those nearest to what was typed, in a list where it wants one."""
    parts = [kind, *_list_inner_types(kind)]
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if not words:
        return None
    typed = [peer_keys.VALUES.get(one.strip(' "'), one.strip(' "')) for one in value.strip("[]").split(",")]
    near = [(get_close_matches(one, words, n=1, cutoff=0.4) or words[:1])[0] for one in typed]
    return f"[{','.join(near)}]" if any(get_origin(part) is list for part in parts) else near[0]


def _list_inner_types(kind: Any) -> list[Any]:
    """The types that a type is made of, however deep; not those of dataclasses."""
    return [one for part in get_args(kind) for one in (part, *_list_inner_types(part))]


def _list_dataclasses(kind: Any) -> list[type]:
    if get_origin(kind) is Annotated:
        return _list_dataclasses(get_args(kind)[0])
    whole = dataclasses.is_dataclass(kind) or is_typeddict(kind)
    return [kind] if whole else [item for arg in get_args(kind) for item in _list_dataclasses(arg)]


def _explain_unexpected(group: str, kind: Any, path: list[str], value: Any, given: Any) -> str:
    key, method = ".".join([group, *path]), given.get("method") if group == "lora" else None
    reason = peft_fields.explain_unsupported(method, path[-1]) if method and len(path) == 1 else None
    shown = value if isinstance(value, str) else json.dumps(value)
    if reason:
        return f"{key}={shown}: PEFT has this field and peftrun does not offer it: {reason}; omit it"
    known = _list_known_keys(group, kind, path[:-1], given)
    if method and len(path) == 1:
        known += [f"lora.{name}" for name in peft_fields.get_accepted_fields(method)]
    return explain_unknown_key(key, shown, known)


def _list_known_keys(group: str, kind: Any, path: list[str], given: Any) -> list[str]:
    owners = _list_dataclasses(kind)
    for step in path:
        owners = [inner for owner in owners for inner in _list_dataclasses(_get_types(owner).get(step))]
    chosen = [owner for owner in owners if _is_selected(owner, given)] or owners
    return [".".join([group, *path, name]) for owner in chosen for name in _get_types(owner)]


def _is_selected(owner: type, given: Any) -> bool:
    tag = next(iter(_get_types(owner).items()), None)
    return bool(tag and isinstance(given, dict) and given.get(tag[0]) in get_args(tag[1]))
