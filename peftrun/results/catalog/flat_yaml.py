"""A run's config.yaml as full keys and values, read many times faster than a YAML library reads it.

peftrun writes these files itself, in one plain form: that is read line by line here, every scalar by the YAML library, each spelling of
one once. Runs share most of their groups, so each text of a group is read once too. Whatever is written otherwise goes to the library.
"""

import re
from functools import cache, lru_cache
from typing import Any

import yaml

GROUPS = re.compile(
    r"(?<=\n)(?=[^\s-])"
)  # between what begins without a space; a list's items belong to the key above them
LINE = re.compile(r"( *)(?:- (?P<item>.*)|(?P<key>[A-Za-z_][\w/.-]*):(?: (?P<value>.*))?)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPENS = tuple("|>&*!{[%@`?-")  # a value that begins so may go on in the next line, or is none of our own
EMPTY: dict[str, Any] = {"{}": {}, "[]": []}


class _NotPlain(Exception):
    """The text is not of the plain form."""


def parse_flat_yaml(text: str) -> dict[str, Any]:
    """Full dotted key → value of every leaf. Raises: yaml.YAMLError: it is no YAML. ValueError: it is no mapping."""
    found: dict[str, Any] = {}
    try:
        for group in GROUPS.split(text):
            found |= _parse_group(group)
    except (_NotPlain, yaml.YAMLError):  # no group of its own, such as one that names what another one holds
        return _load_with_pyyaml(text)
    return found


@lru_cache(maxsize=4096)
def _parse_group(text: str) -> dict[str, Any]:
    try:
        return _parse_lines(text)
    except _NotPlain:
        values = yaml.load(text, Loader=LOADER)
    if not isinstance(values, dict):
        raise _NotPlain
    return flatten_values(values)


def _load_with_pyyaml(text: str) -> dict[str, Any]:
    values = yaml.load(text, Loader=LOADER)
    if not isinstance(values, dict):
        raise ValueError("it holds no mapping")
    return flatten_values(values)


def flatten_values(values: Any, prefix: str = "") -> dict[str, Any]:
    """Full dotted key → value of every leaf of nested mappings; an empty mapping is a leaf."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, item in values.items():
        found |= flatten_values(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _parse_lines(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path: list[str] = []  # keys of the mappings that are open, or of the list
    waiting = listed = False  # the last of them has nothing yet; it is a list
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is None or len(match[1]) % 2:
            raise _NotPlain
        depth, item = len(match[1]) // 2, match["item"]
        if item is not None:
            if not (waiting or listed) or depth != len(path) - 1:
                raise _NotPlain
            found.setdefault(".".join(path), []).append(_parse_scalar(item))
            waiting, listed = False, True
            continue
        if depth > len(path) - listed or (waiting and depth != len(path)):
            raise _NotPlain
        path, waiting, listed = path[:depth], match["value"] is None, False
        if waiting:
            path.append(match["key"])
        else:
            found[".".join([*path, match["key"]])] = _parse_scalar(match["value"])
    if waiting:
        raise _NotPlain
    return found


@cache
def _parse_scalar(text: str) -> Any:
    if text in EMPTY:
        return EMPTY[text]
    if text.startswith(OPENS) and not re.fullmatch(r"-[\d.].*", text):
        raise _NotPlain
    try:
        found = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:  # a text in quotes that goes on in the next line
        raise _NotPlain from error
    if isinstance(found, dict | list):
        raise _NotPlain
    return found
