"""Comments on the keys of YAML files in `conf/`: behind a key, or in the lines above it."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

COMMENT = re.compile(r"\s#\s?(.*)$")


@dataclass(frozen=True)
class YamlKey:
    """A key of a YAML file: its comment, and its value if that is a scalar (else None)."""

    comment: str | None
    value: Any


@cache
def read_keys(path: Path) -> dict[str, YamlKey]:
    """Dotted key → comment and value, for every key of block mappings, at any depth."""
    # Nodes keep the positions in the text; loading would drop the comments.
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text)
    return _read_mapping(node, text.splitlines(), "") if isinstance(node, yaml.MappingNode) else {}


def _read_mapping(node: yaml.MappingNode, lines: list[str], prefix: str) -> dict[str, YamlKey]:
    keys: dict[str, YamlKey] = {}
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        scalar = yaml.safe_load(yaml.serialize(value)) if isinstance(value, yaml.ScalarNode) else None
        keys[name] = YamlKey(_find_comment(key, value, lines), scalar)
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            keys |= _read_mapping(value, lines, f"{name}.")
    return keys


def _find_comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str | None:
    row = key.start_mark.line
    # Search behind the value, which may have a # of its own; a block value begins on the next line.
    end = value.end_mark.column if value.end_mark.line == row else key.end_mark.column
    trailing = COMMENT.search(lines[row][end:])
    if trailing:
        return trailing[1]
    first = row
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    # Comment lines at the top belong to the file, not to its first key.
    return " ".join(line.lstrip("# ") for line in lines[first:row]) or None if first else None
