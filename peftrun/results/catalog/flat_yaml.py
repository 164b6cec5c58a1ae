"""Fast reader of a run's config.yaml as full keys and values.

peftrun writes these files itself, in one plain form, which is parsed line by line here; scalars go to the YAML library, each distinct
text once. Runs share most of their groups, so each distinct group text is parsed once too. Anything else falls back to the YAML library.
"""

import re
from functools import cache, lru_cache
from typing import Any

import yaml

# Splits before each top-level key; a top-level `- ` belongs to the list of the key above it.
GROUPS = re.compile(r"(?<=\n)(?=[^\s-])")
LINE = re.compile(r"( *)(?:- (?P<item>.*)|(?P<key>[A-Za-z_][\w/.-]*):(?: (?P<value>.*))?)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# First characters of values that may continue on the next line (block, flow) or that peftrun does not write (anchors, tags).
UNSUPPORTED_STARTS = tuple("|>&*!{[%@`?-")
EMPTY: dict[str, Any] = {"{}": {}, "[]": []}


class _NotPlain(Exception):
    """The text is not in the plain form that peftrun writes."""


def parse_flat_yaml(text: str) -> dict[str, Any]:
    """Full dotted key → value of every leaf. Raises: yaml.YAMLError: not YAML. ValueError: not a mapping."""
    leaves: dict[str, Any] = {}
    try:
        for group in GROUPS.split(text):
            leaves |= _parse_group(group)
    except (
        _NotPlain,
        yaml.YAMLError,
    ):  # a group that is invalid by itself, such as an alias to an anchor in another group
        values = yaml.load(text, Loader=LOADER)
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping") from None
        return flatten_values(values)
    return leaves


@lru_cache(maxsize=4096)
def _parse_group(text: str) -> dict[str, Any]:
    try:
        return _parse_lines(text)
    except _NotPlain:
        values = yaml.load(text, Loader=LOADER)
    if not isinstance(values, dict):
        raise _NotPlain
    return flatten_values(values)


def flatten_values(values: Any, prefix: str = "") -> dict[str, Any]:
    """Full dotted key → value of every leaf of nested mappings; an empty mapping is a leaf."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    leaves: dict[str, Any] = {}
    for key, item in values.items():
        leaves |= flatten_values(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _parse_lines(text: str) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    path: list[str] = []  # keys of the open mappings; the last may be the key of a list
    is_open = in_list = False  # the last key has no value yet; the last key holds a list
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is None or len(match[1]) % 2:
            raise _NotPlain
        depth, item = len(match[1]) // 2, match["item"]  # two spaces a level
        if item is not None:
            # YAML dumps a list's dashes at the indentation of its key.
            if not (is_open or in_list) or depth != len(path) - 1:
                raise _NotPlain
            leaves.setdefault(".".join(path), []).append(_parse_scalar(item))
            is_open, in_list = False, True
            continue
        # A key without a value must be followed by its mapping: a plain file spells an empty value as null or {}.
        if depth > len(path) - in_list or (is_open and depth != len(path)):
            raise _NotPlain
        path, is_open, in_list = path[:depth], match["value"] is None, False
        if is_open:
            path.append(match["key"])
        else:
            leaves[".".join([*path, match["key"]])] = _parse_scalar(match["value"])
    if is_open:
        raise _NotPlain
    return leaves


@cache
def _parse_scalar(text: str) -> Any:
    if text in EMPTY:
        return EMPTY[text]
    if text.startswith(UNSUPPORTED_STARTS) and not re.fullmatch(r"-[\d.].*", text):  # but negative numbers are fine
        raise _NotPlain
    try:
        value = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:  # a quoted text that continues on the next line
        raise _NotPlain from error
    if isinstance(value, dict | list):
        raise _NotPlain
    return value
