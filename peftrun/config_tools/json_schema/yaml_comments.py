"""What the YAML files of `conf/` say of their keys: the comment behind a key, or the lines of comment above it."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

COMMENT = re.compile(r"\s#\s?(.*)$")


@dataclass(frozen=True)
class YamlKey:
    """A key of a file: what is said of it, and its value there where that is a plain one."""

    comment: str | None
    value: Any


@cache
def read_keys(path: Path) -> dict[str, YamlKey]:
    """Dotted key → what the file says of it, for every key of block mappings, however deep."""
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text)
    return _read_mapping(node, text.splitlines(), "") if isinstance(node, yaml.MappingNode) else {}


def _read_mapping(node: yaml.MappingNode, lines: list[str], prefix: str) -> dict[str, YamlKey]:
    found: dict[str, YamlKey] = {}
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        found[name] = YamlKey(_find_comment(key, value, lines), _parse_scalar(value))
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            found |= _read_mapping(value, lines, f"{name}.")
    return found


def _find_comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str | None:
    row = key.start_mark.line
    ends = value.end_mark.column if value.end_mark.line == row else key.end_mark.column
    behind = COMMENT.search(lines[row][ends:])
    return behind[1] if behind else _find_comment_above(row, lines)


def _find_comment_above(row: int, lines: list[str]) -> str | None:
    """The comment right above a row, unless it is the file's own, with which it begins."""
    first = row
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.lstrip("# ") for line in lines[first:row]) or None if first else None


def _parse_scalar(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node)) if isinstance(node, yaml.ScalarNode) else None
