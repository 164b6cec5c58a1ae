"""Values as they are typed: in Hydra's grammar, and in a shell. Light.

What Hydra's grammar has no words for (a mapping whose names hold spaces, letters beyond ASCII or a dot) is written as JSON for
OmegaConf's own `oc.create`, which also puts the mapping in place of what was there.
"""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from peftrun.config import shorthand

BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.+@%-]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|[1-9][0-9]*")  # of a key, in a mapping or between dots
RESERVED_WORDS = {"null", "true", "false", "inf", "nan"}  # mean something else where they stand without quotes
INTERPOLATION = re.compile(r"(\\*)\$\{")


def quote_override(key: str, value: Any, sign: str = "") -> str:
    """`key=value` as Hydra reads it. `sign`: `++` for a key that is not there yet."""
    text = _quote_value(value) if _is_expressible(value) else quote_replacement(value)
    if shorthand.holds_text(key) and shorthand.LINE_END.search(text):  # it would be read as the end of a line
        text = (
            QuotedString(_escape_interpolations(value) + shorthand.AS_WRITTEN, Quote.double).with_quotes()
            if isinstance(value, str)
            else quote_replacement(value)
        )
    elif "\n" in text and not shorthand.holds_text(key) and isinstance(value, dict | list):
        text = quote_replacement(value)
    return f"{sign}{key}={text}"


def quote_replacement(value: Any) -> str:
    """A value that replaces what is there, mapping or not, whatever its names are."""
    text = "".join(_escape_char(letter) for letter in json.dumps(_escape_interpolations(value), ensure_ascii=False))
    return _quote_text(f"${{oc.create:'{text}'}}")


def is_name(key: str) -> bool:
    """Whether this part of a key can be typed."""
    return NAME.fullmatch(key) is not None and key.lower() not in RESERVED_WORDS


def format_shell_command(overrides: Sequence[str], search_path: Sequence[str] = ()) -> str:
    """What to type in a shell. `search_path`: as `asked.search_path` gives it."""
    return join_overrides(["peftrun", *format_search_path_flags(search_path), *overrides])


def join_overrides(overrides: Sequence[str]) -> str:
    """The overrides alone, for a shell; line ends as they are typed."""
    return shlex.join(map(shorthand.escape_line_ends, overrides))


def format_searchpath(places: Sequence[str]) -> list[str]:
    """The override that adds these places to where options are looked for; none where there are none."""
    return [quote_override("hydra.searchpath", list(places))] if places else []


def format_search_path_flags(search_path: Sequence[str]) -> list[str]:
    """What is typed first, so that options are looked for there too."""
    folders = [one.removeprefix("file://") for one in search_path]
    if len(search_path) == 1 and search_path[0].startswith("file://"):
        return ["--config-dir", folders[0]]
    return format_searchpath(search_path)


def _is_expressible(value: Any) -> bool:
    """Whether Hydra's grammar can say it: every mapping's names can be typed."""
    if isinstance(value, dict):
        return all(is_name(str(key)) and _is_expressible(item) for key, item in value.items())
    return all(_is_expressible(item) for item in value) if isinstance(value, list) else True


def _quote_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_quote_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_quote_value, value)) + "]"
    if isinstance(value, str):
        return value if _is_bare(value) else _quote_text(_escape_interpolations(value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _escape_interpolations(value: Any) -> Any:
    """The same, with nothing in it that OmegaConf would take for an interpolation."""
    if isinstance(value, dict):
        return {key: _escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_interpolations(item) for item in value]
    return INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _is_bare(text: str) -> bool:
    return BARE.fullmatch(text) is not None and text.lower() not in RESERVED_WORDS and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quote_text(text: str) -> str:
    quote = Quote.single if '"' in text and "'" not in text else Quote.double  # a shell's own quotes are single
    return QuotedString(text, quote).with_quotes()


def _escape_char(letter: str) -> str:
    """A letter of JSON such that no quote, no interpolation and no line break of YAML comes of it."""
    if " " <= letter <= "~" and letter not in "'$":
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 1 << 16 else f"\\U{ord(letter):08x}"
