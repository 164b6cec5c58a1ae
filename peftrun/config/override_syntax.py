"""Quote values for Hydra's override grammar and for a shell. Light.

A value that Hydra's grammar cannot express (a mapping whose names contain spaces, dots or letters beyond ASCII) is written as JSON for
OmegaConf's resolver `oc.create`, which also replaces a mapping instead of merging into it.
"""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from peftrun.config import shorthand

BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.+@%-]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|[1-9][0-9]*")  # a key, in a mapping or between dots
RESERVED_WORDS = {"null", "true", "false", "inf", "nan"}  # have another meaning without quotes
INTERPOLATION = re.compile(r"(\\*)\$\{")


def quote_override(key: str, value: Any, sign: str = "") -> str:
    """`key=value` as Hydra reads it. `sign`: `++` for a key that the config does not have yet."""
    text = _quote_value(value) if _is_expressible(value) else quote_replacement(value)
    if shorthand.holds_text(key) and shorthand.LINE_END.search(text):  # a literal \n would be expanded to a line end
        text = (
            QuotedString(_escape_interpolations(value) + shorthand.AS_WRITTEN, Quote.double).with_quotes()
            if isinstance(value, str)
            else quote_replacement(value)
        )
    elif "\n" in text and not shorthand.holds_text(key) and isinstance(value, dict | list):
        text = quote_replacement(value)
    return f"{sign}{key}={text}"


def quote_replacement(value: Any) -> str:
    """A value, as `${oc.create:…}`, that replaces the old one even if both are mappings."""
    text = "".join(map(_escape_char, json.dumps(_escape_interpolations(value), ensure_ascii=False)))
    return _quote_text(f"${{oc.create:'{text}'}}")


def is_name(key: str) -> bool:
    """Whether this part of a key can be written in an override."""
    return NAME.fullmatch(key) is not None and key.lower() not in RESERVED_WORDS


def format_shell_command(overrides: Sequence[str], search_path: Sequence[str] = ()) -> str:
    """A peftrun command for a shell. `search_path`: as `run_overrides.read_search_path` returns it."""
    return join_overrides(["peftrun", *format_search_path_flags(search_path), *overrides])


def join_overrides(overrides: Sequence[str]) -> str:
    """The overrides quoted for a shell, line ends as `\\n`."""
    return shlex.join(map(shorthand.escape_line_ends, overrides))


def format_searchpath(places: Sequence[str]) -> list[str]:
    """The override that extends Hydra's search path; an empty list without `places`."""
    return [quote_override("hydra.searchpath", list(places))] if places else []


def format_search_path_flags(search_path: Sequence[str]) -> list[str]:
    """The flags or overrides that extend the search path."""
    if len(search_path) == 1 and search_path[0].startswith("file://"):
        return ["--config-dir", search_path[0].removeprefix("file://")]
    return format_searchpath(search_path)


def _is_expressible(value: Any) -> bool:
    """Whether Hydra's grammar can express a value: every name in its mappings is a valid key."""
    if isinstance(value, dict):
        return all(is_name(str(key)) and _is_expressible(item) for key, item in value.items())
    return all(_is_expressible(item) for item in value) if isinstance(value, list) else True


def _quote_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_quote_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_quote_value, value)) + "]"
    if isinstance(value, str):
        is_bare = BARE.fullmatch(value) and value.lower() not in RESERVED_WORDS and not _is_number(value)
        return value if is_bare else _quote_text(_escape_interpolations(value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _escape_interpolations(value: Any) -> Any:
    """The value with `${` escaped, so that OmegaConf finds no interpolation."""
    if isinstance(value, dict):
        return {key: _escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_interpolations(item) for item in value]
    return INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escape_char(char: str) -> str:
    """A character of JSON text, escaped if it could end a quote, start an interpolation, or break a line of YAML."""
    if " " <= char <= "~" and char not in "'$":
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _quote_text(text: str) -> str:
    quote = Quote.single if '"' in text and "'" not in text else Quote.double  # a shell's own quotes are single
    return QuotedString(text, quote).with_quotes()


def strip_quotes(value: Any) -> Any:
    """The value with plain strings, at any depth: Hydra's parser keeps quoted strings as QuotedString."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [strip_quotes(item) for item in value]
    if isinstance(value, dict):
        return {strip_quotes(key): strip_quotes(item) for key, item in value.items()}
    return value
