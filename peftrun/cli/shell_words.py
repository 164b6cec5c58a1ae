"""Values that a shell has taken apart, at blanks or at the commas in braces: what to type so that they stay whole. Light."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import takewhile

from peftrun.config import shorthand

OPENING, CLOSING = re.compile(r"[{\[(]"), re.compile(r"[}\])]")
PAIR = re.compile(r"([+\w./@-]+)=(\w+):(?!//)(.*)", re.DOTALL)  # what is left of key={name:value,…}
ADVICE = "put the whole in single quotes, which keep double ones inside them: type"


def taken_apart(argv: Sequence[str]) -> Iterator[str]:
    """One line for each value of which the shell made several words, as `argv` holds them."""
    place = 0
    while place < len(argv):
        first, rest = argv[place], argv[place + 1 :]
        pieces = _of_a_text(first, rest) if _is_text(first) else _of_brackets(first, rest)
        if pieces:
            whole = " ".join([first, *pieces])
            yield f"{whole}: the shell made {len(pieces) + 1} words of it; {ADVICE} {_in_shell(whole)}"
        elif pieces := _of_braces(first, rest):
            words = [first, *pieces]
            yield f"{' '.join(words)}: the shell made {len(words)} words of one value in braces; {ADVICE} {_in_braces(words)}"
        place += 1 + len(pieces)


def _is_text(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+")
    return key in shorthand.TEXTS or f"action.{key}" in shorthand.TEXTS


def _of_a_text(first: str, rest: Sequence[str]) -> list[str]:
    """The words behind a template, a system message or a prompt without quotes that are neither overrides nor flags."""
    if shorthand.QUOTED.fullmatch(first.partition("=")[2]):
        return []
    return list(takewhile(lambda word: "=" not in word and not word.startswith("-"), rest))


def _of_brackets(first: str, rest: Sequence[str]) -> list[str]:
    """The words up to the one that closes what `first` opens; none: it opens nothing, or nothing closes it."""
    whole = first.partition("=")[2]
    if first.startswith("-") or _open(whole) < 1:
        return []
    for count, word in enumerate(rest, 1):
        whole += f" {word}"
        if _open(whole) < 1:
            return list(rest[:count])
    return []


def _open(value: str) -> int:
    """How many brackets are not closed, those in quotes left out."""
    bare = shorthand.QUOTED.sub("", value)
    return len(OPENING.findall(bare)) - len(CLOSING.findall(bare))


def _of_braces(first: str, rest: Sequence[str]) -> list[str]:
    """The words of the same key that make a mapping with `first`."""
    found = PAIR.fullmatch(first)
    key = found[1] if found else ""
    return list(takewhile(lambda word: bool((one := PAIR.fullmatch(word)) and one[1] == key), rest)) if found else []


def _in_braces(words: Sequence[str]) -> str:
    """The mapping that was typed, where it can be told: one in another is taken apart too."""
    pairs = [found.groups() for word in words if (found := PAIR.fullmatch(word))]
    plain = len({name for _, name, _ in pairs}) == len(pairs) and not any(":" in value for *_, value in pairs)
    inside = ", ".join(f"{name}: {value}" for _, name, value in pairs) if plain else "…"
    return shlex.quote(f"{pairs[0][0]}={{{inside}}}")


def _in_shell(whole: str) -> str:
    return shlex.quote(shorthand.in_quotes(whole) if _is_text(whole) else whole)
