"""Schemas made small: what stands in several places is held once, and short parts are written on one line."""

import json
from collections import Counter
from typing import Any

from peftrun.config_tools.json_schema.values import Schema

WIDTH = 120
WORTH_SHARING = 150  # characters


def shared(whole: Schema) -> Schema:
    """The same schema, each longer property that stands in it several times moved to its definitions and referred to."""
    texts = Counter(text for _, text in _properties(whole))
    names: dict[str, str] = {}
    taken: Counter[str] = Counter(list(whole["definitions"]))
    for key, text in _properties(whole):
        if texts[text] > 1 and text not in names:
            taken[key] += 1
            names[text] = key if taken[key] == 1 else f"{key}_{taken[key]}"
    held = {name: json.loads(text) for text, name in names.items()}
    return _referring(whole | {"definitions": {**whole["definitions"], **held}}, names)


def as_text(value: Any, indent: str = "") -> str:
    """JSON with what fits on a line, and every list of plain values, on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= WIDTH or not _has_parts(value):
        return flat
    deeper = f"{indent} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {as_text(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + as_text(item, deeper) for item in value) + f"\n{indent}]"


def _properties(schema: Any) -> list[tuple[str, str]]:
    """Key and text of every longer property, however deep, in order."""
    if isinstance(schema, list):
        return [one for item in schema for one in _properties(item)]
    if not isinstance(schema, dict):
        return []
    own = [(key, json.dumps(item, ensure_ascii=False)) for key, item in _mapping(schema, "properties").items()]
    return [*(one for one in own if _worth_sharing(*one)), *_properties(list(schema.values()))]


def _worth_sharing(key: str, text: str) -> bool:
    return len(text) >= WORTH_SHARING and key.isidentifier()


def _referring(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_referring(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _referring(item, names) for key, item in schema.items()}
    if _mapping(schema, "properties"):
        found["properties"] = {key: _reference(item, names) for key, item in schema["properties"].items()}
    return found


def _reference(schema: Schema, names: dict[str, str]) -> Any:
    name = names.get(json.dumps(schema, ensure_ascii=False))
    return {"$ref": f"#/definitions/{name}"} if name else _referring(schema, names)


def _has_parts(value: Any) -> bool:
    """Whether a value is worth more than one line: a list of plain values is not."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))


def _mapping(schema: Schema, key: str) -> Schema:
    found = schema.get(key)
    return found if isinstance(found, dict) else {}
