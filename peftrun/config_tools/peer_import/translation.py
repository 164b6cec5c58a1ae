"""What becomes of each key of another tool's config, by the tables of `config/peers`. Light."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from peftrun.config import shorthand
from peftrun.config.override_syntax import strip_quotes
from peftrun.config.peers.tables import OTHERS, VALUE, Row
from peftrun.formatting import format_value

LINK = re.compile(r"\[([^]]+)\]\(([^)]+)\)")
CARRIED, NOT_NEEDED, NO_COUNTERPART = "carried", "not needed", "no counterpart"
IS_DEFAULT = "it is the default here"


@dataclass(frozen=True)
class PeerConfig:
    """A config of another tool. `keys`: those with a value; keys of nested mappings are joined by dots. `command`: the word that chose the training."""

    tool: str
    path: Path
    keys: dict[str, Any]
    command: str = ""


@dataclass
class Translation:
    """One key of theirs. `settings`: full key of peftrun, or group → value, or option. `note`: why, what to type instead, or what to check."""

    key: str
    value: Any
    verdict: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


Converter = Callable[[PeerConfig, str, Any], list[Translation]]


def carry(key: str, value: Any, settings: dict[str, Any], note: str = "") -> list[Translation]:
    """The key as these settings. `note`: what the user must check."""
    return [Translation(key, value, CARRIED, settings, note)]


def leave_out(key: str, value: Any, note: str) -> list[Translation]:
    """The key has no counterpart. `note`: what to do."""
    return [Translation(key, value, NO_COUNTERPART, note=note)]


def skip(key: str, value: Any, note: str = IS_DEFAULT) -> list[Translation]:
    """The key is not needed. `note`: why."""
    return [Translation(key, value, NOT_NEEDED, note=note)]


def translate_by_row(row: Row, key: str, value: Any) -> list[Translation]:
    """The key by its row of the table."""
    if row.not_needed:
        return skip(key, value, write_links(row.not_needed))
    if value is False and row.no_counterpart:
        return skip(key, value, "it is off here")
    if row.no_counterpart or row.by_hand:
        return leave_out(key, value, write_links(row.no_counterpart or row.by_hand))
    text = find_case(row.to, value) if isinstance(row.to, dict) else row.to
    if text is None:
        assert isinstance(row.to, dict)
        return leave_out(key, value, write_links(row.note) or f"only {', '.join(row.to)} can be converted")
    return carry(key, value, dict(parse_overrides(text, value))) if text else skip(key, value)


def write_links(text: str) -> str:
    """The text of a guide with its links as paths."""
    return LINK.sub(lambda link: f"{link[1]} (docs/howto/{link[2]})".replace("howto/../", ""), text).replace("`", "")


def find_case(cases: dict[str, str], value: Any) -> str | None:
    """What the cases of a row say of a value; None: nothing."""
    text = format_value(value)
    return cases.get(text, cases.get(text.strip("[]"), cases.get(OTHERS)))


def parse_overrides(text: str, value: Any = None) -> Iterator[tuple[str, Any]]:
    """Full key or group, and value, of each override in `text`. VALUE in it stands for `value`."""
    for word in shlex.split(text):
        key, _, written = word.partition("=")
        yield key, _fill_value(key, written, value)


def _fill_value(key: str, text: str, value: Any) -> Any:
    if VALUE not in text:
        (word,) = shorthand.expand_shorthand([f"{key}={text}"])
        return strip_quotes(OverridesParser.create().parse_override(word.lstrip("+")).value())
    if text == VALUE:
        return value
    if text == f"[{VALUE}]":
        return split_list(value)
    if text.startswith("{"):
        return yaml.safe_load(text.replace(VALUE, str(format_value(value))))
    return text.strip('"').replace(VALUE, str(value))


def split_list(value: Any) -> list[Any]:
    """A list, or what a text separated by commas lists."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]  # fmt: skip
