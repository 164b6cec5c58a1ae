"""Schemas made small: what stands in several places is held once, and short parts are written on one line."""

import json
from collections import Counter
from typing import Any

from peftrun.config_tools.json_schema.values import Schema

MAX_LINE_WIDTH = 120
MIN_SHARED_LENGTH = 150  # characters


def share_properties(whole: Schema) -> Schema:
    """The same schema, each longer property that stands in it several times moved to its definitions and referred to."""
    texts = Counter(text for _, text in _list_properties(whole))
    names: dict[str, str] = {}
    taken: Counter[str] = Counter(list(whole["definitions"]))
    for key, text in _list_properties(whole):
        if texts[text] > 1 and text not in names:
            taken[key] += 1
            names[text] = key if taken[key] == 1 else f"{key}_{taken[key]}"
    held = {name: json.loads(text) for text, name in names.items()}
    return _insert_references(whole | {"definitions": {**whole["definitions"], **held}}, names)


def format_json(value: Any, indent: str = "") -> str:
    """JSON with what fits on a line, and every list of plain values, on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= MAX_LINE_WIDTH or not _has_parts(value):
        return flat
    deeper = f"{indent} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {format_json(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + format_json(item, deeper) for item in value) + f"\n{indent}]"


def _list_properties(schema: Any) -> list[tuple[str, str]]:
    """Key and text of every longer property, however deep, in order."""
    if isinstance(schema, list):
        return [one for item in schema for one in _list_properties(item)]
    if not isinstance(schema, dict):
        return []
    own = [(key, json.dumps(item, ensure_ascii=False)) for key, item in _get_mapping(schema, "properties").items()]
    return [*(one for one in own if _is_worth_sharing(*one)), *_list_properties(list(schema.values()))]


def _is_worth_sharing(key: str, text: str) -> bool:
    return len(text) >= MIN_SHARED_LENGTH and key.isidentifier()


def _insert_references(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_insert_references(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _insert_references(item, names) for key, item in schema.items()}
    if _get_mapping(schema, "properties"):
        found["properties"] = {key: _build_reference(item, names) for key, item in schema["properties"].items()}
    return found


def _build_reference(schema: Schema, names: dict[str, str]) -> Any:
    name = names.get(json.dumps(schema, ensure_ascii=False))
    return {"$ref": f"#/definitions/{name}"} if name else _insert_references(schema, names)


def _has_parts(value: Any) -> bool:
    """Whether a value is worth more than one line: a list of plain values is not."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))


def _get_mapping(schema: Schema, key: str) -> Schema:
    found = schema.get(key)
    return found if isinstance(found, dict) else {}
