"""Makes schema files small: repeated properties become shared definitions, and short values are written on one line."""

import json
from collections import Counter
from typing import Any

from peftrun.config_tools.json_schema.values import Schema

MAX_LINE_WIDTH = 120
MIN_SHARED_LENGTH = 150  # characters


def share_properties(schema: Schema) -> Schema:
    """The schema with each longer property that occurs several times moved to its definitions."""
    counts = Counter(text for _, text in _list_properties(schema))
    names: dict[str, str] = {}  # JSON text of a property → name of its definition
    used: Counter[str] = Counter(list(schema["definitions"]))
    for key, text in _list_properties(schema):
        if counts[text] > 1 and text not in names:
            used[key] += 1
            # Several properties may have the same key and different schemas.
            names[text] = key if used[key] == 1 else f"{key}_{used[key]}"
    shared = {name: json.loads(text) for text, name in names.items()}
    return _insert_references(schema | {"definitions": {**schema["definitions"], **shared}}, names)


def format_json(value: Any, indent: str = "") -> str:
    """JSON, with every list of plain values, and every value that is short enough, on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    is_nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
    )
    if len(indent) + len(flat) <= MAX_LINE_WIDTH or not is_nested:
        return flat
    deeper = f"{indent} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {format_json(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + format_json(item, deeper) for item in value) + f"\n{indent}]"


def _list_properties(schema: Any) -> list[tuple[str, str]]:
    """(key, JSON text) of every property that is worth sharing, at any depth, in order."""
    if isinstance(schema, list):
        return [pair for item in schema for pair in _list_properties(item)]
    if not isinstance(schema, dict):
        return []
    properties = _get_mapping(schema, "properties")
    texts = [(key, json.dumps(item, ensure_ascii=False)) for key, item in properties.items()]
    shared = [(key, text) for key, text in texts if len(text) >= MIN_SHARED_LENGTH and key.isidentifier()]
    return [*shared, *_list_properties(list(schema.values()))]


def _insert_references(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_insert_references(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    replaced = {key: _insert_references(item, names) for key, item in schema.items()}
    if _get_mapping(schema, "properties"):
        references = {
            key: names.get(json.dumps(item, ensure_ascii=False)) for key, item in schema["properties"].items()
        }
        replaced["properties"] = {
            key: {"$ref": f"#/definitions/{references[key]}"} if references[key] else _insert_references(item, names)
            for key, item in schema["properties"].items()
        }
    return replaced


def _get_mapping(schema: Schema, key: str) -> Schema:
    # A property may itself be called "properties".
    value = schema.get(key)
    return value if isinstance(value, dict) else {}
