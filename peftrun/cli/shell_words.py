"""Detect values that the shell split at blanks or expanded from braces, and say how to quote them. Light."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import takewhile

from peftrun.config import shorthand

OPENING, CLOSING = re.compile(r"[{\[(]"), re.compile(r"[}\])]")
PAIR = re.compile(r"([+\w./@-]+)=(\w+):(?!//)(.*)", re.DOTALL)  # what brace expansion makes of key={name:value,…}
ADVICE = "put all of it in single quotes, which may contain double ones: type"


def find_split_values(argv: Sequence[str]) -> Iterator[str]:
    """One message for each value of which the shell made several words of `argv`."""
    position = 0
    while position < len(argv):
        first, following = argv[position], argv[position + 1 :]
        pieces: list[str] = []
        if not _is_text(first):
            pieces = _find_bracket_pieces(first, following)
        elif not shorthand.QUOTED.fullmatch(first.partition("=")[2]):
            # An unquoted template, system message or prompt: the words up to the next override or flag belong to it.
            pieces = list(takewhile(lambda word: "=" not in word and not word.startswith("-"), following))
        if pieces:
            value = " ".join([first, *pieces])
            quoted = shlex.quote(shorthand.in_quotes(value) if _is_text(value) else value)
            yield f"{value}: the shell made {len(pieces) + 1} words of it; {ADVICE} {quoted}"
        elif pieces := _find_brace_pieces(
            first, following
        ):  # bash makes `adapter=a:X adapter=b:Y` of `adapter={a:X,b:Y}`
            words = [first, *pieces]
            # The mapping as it was typed; `…` for its content if mappings were nested, which the shell flattens.
            pairs = [match.groups() for word in words if (match := PAIR.fullmatch(word))]
            is_flat = len({name for _, name, _ in pairs}) == len(pairs) and not any(":" in text for *_, text in pairs)
            content = ", ".join(f"{name}: {text}" for _, name, text in pairs) if is_flat else "…"
            quoted = shlex.quote(f"{pairs[0][0]}={{{content}}}")
            yield f"{' '.join(words)}: the shell made {len(words)} words of one value in braces; {ADVICE} {quoted}"
        position += 1 + len(pieces)


def _is_text(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+")
    return key in shorthand.TEXTS or f"action.{key}" in shorthand.TEXTS


def _find_bracket_pieces(first: str, following: Sequence[str]) -> list[str]:
    """The words up to the one that closes the brackets of `first`; empty if it opens none, or none closes them."""
    value = first.partition("=")[2]
    if first.startswith("-") or _count_open_brackets(value) < 1:
        return []
    for count, word in enumerate(following, 1):
        value += f" {word}"
        if _count_open_brackets(value) < 1:
            return list(following[:count])
    return []


def _count_open_brackets(value: str) -> int:
    unquoted = shorthand.QUOTED.sub("", value)
    return len(OPENING.findall(unquoted)) - len(CLOSING.findall(unquoted))


def _find_brace_pieces(first: str, following: Sequence[str]) -> list[str]:
    """The words with the same key that form a mapping with `first`."""
    match = PAIR.fullmatch(first)
    if match is None:
        return []
    return list(takewhile(lambda word: bool((other := PAIR.fullmatch(word)) and other[1] == match[1]), following))
