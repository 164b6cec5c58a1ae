"""Typed overrides with old names of keys and options, in today's names. Light.

All forms are read: signs, sweeps, keys without `action.`, keys inside a mapping, interpolations.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from peftrun.config import migrations
from peftrun.config.paths import GROUPS

OVERRIDE = re.compile(r"(?P<sign>[+~]*)(?P<key>\w[\w.-]*)(?P<package>@[\w.]*)?(?:=(?P<value>.*))?", re.DOTALL)
SEARCHED = "hydra.sweeper.params."  # the space of a search, whose keys follow
WORD = re.compile(r"[\w-]+")
SPELLED = {None: "null", True: "true", False: "false"}


def rename_overrides(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides with today's keys and options, and a line for each old one. Values in braces and references are kept."""
    lines: list[str] = []
    return [_rename_override(text, lines) for text in typed], list(dict.fromkeys(lines))


def rename_inside(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides with today's keys inside their values, and a line for each old one. They are as Hydra's grammar reads them."""
    lines: list[str] = []
    return [_rename_value(text, lines) for text in overrides], list(dict.fromkeys(lines))


def rename_recorded(overrides: Sequence[str]) -> list[str]:
    """Recorded overrides, in today's keys and options."""
    return rename_inside(rename_overrides(overrides)[0])[0]


def _rename_override(text: str, lines: list[str]) -> str:
    match = OVERRIDE.fullmatch(text)
    if match is None or (match["value"] is None and "~" not in match["sign"]):  # a flag, or its value
        return text
    prefix = SEARCHED if match["key"].startswith(SEARCHED) else ""
    key, value = match["key"].removeprefix(prefix), match["value"]
    if key in GROUPS:
        value = _rename_words(key, value, lines)
    else:
        is_short = f"action.{key}" in migrations.RENAMED and key not in migrations.RENAMED
        new, found = migrations.rename_key(f"action.{key}" if is_short else key)
        lines += map(migrations.format_renamed_key, found)
        key = new.removeprefix("action.") if is_short else new
        if value is not None and found and (values := _spell_values(found[-1])):
            value = WORD.sub(lambda word: values.get(word[0], word[0]), value)
    return f"{match['sign']}{prefix}{key}{match['package'] or ''}{'' if value is None else f'={value}'}"


def _rename_words(group: str, value: str | None, lines: list[str]) -> str | None:
    """The value of a group, which may be several options, with today's names."""
    if value is None or value.startswith("{"):
        return value

    def replace(word: re.Match[str]) -> str:
        if (group, word[0]) in migrations.RENAMED_OPTIONS:
            lines.append(migrations.format_renamed_option(group, word[0]))
        return migrations.rename_option(group, word[0])

    return WORD.sub(replace, value)


def _spell_values(old: str) -> dict[str, str]:
    """The old values of a renamed key as typed → the new ones."""
    values = migrations.RENAMED_VALUES.get(old, {})
    return {SPELLED.get(before, str(before)): SPELLED.get(after, str(after)) for before, after in values.items()}


def _rename_value(text: str, lines: list[str]) -> str:
    match = OVERRIDE.fullmatch(text)
    if match is None or not match["value"]:
        return text
    key, value = match["key"].removeprefix(SEARCHED.rstrip(".")).lstrip("."), match["value"]
    if "{" in value and migrations.RENAMED:
        value = _rename_in_mapping(value, key, lines)
    value, found = migrations.rename_references(value, key.rpartition(".")[0])
    lines += found
    return text[: match.start("value")] + value


def _rename_in_mapping(value: str, owner: str, lines: list[str]) -> str:
    """A value of Hydra's grammar with today's keys in its mappings; unchanged if Hydra cannot read it."""
    from antlr4 import CommonTokenStream, InputStream
    from hydra.core.override_parser.overrides_visitor import HydraErrorListener
    from hydra.errors import HydraException
    from hydra.grammar.gen.OverrideLexer import OverrideLexer
    from hydra.grammar.gen.OverrideParser import OverrideParser

    lexer = OverrideLexer(InputStream(value))
    lexer.mode(OverrideLexer.VALUE_MODE)
    parser = OverrideParser(CommonTokenStream(lexer))
    for recognizer in (lexer, parser):
        recognizer.removeErrorListeners()
        recognizer.addErrorListener(HydraErrorListener())
    try:
        tree = parser.value()
    except HydraException:  # reported when Hydra reads it
        return value
    for start, stop, text in reversed([*_find_replacements(tree, owner, lines)]):  # from the end, so that places stay
        value = value[:start] + text + value[stop + 1 :]
    return value


def _find_replacements(node: Any, owner: str, lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """(first character, last character, today's text) of old names in the mappings below a node of the parse tree, in order.

    Args: owner: today's key of the mapping.
    """
    for child in getattr(node, "children", None) or ():
        if not hasattr(child, "dictKey"):
            yield from _find_replacements(child, owner, lines)
            continue
        name, element = child.dictKey(), child.element()
        key, found = migrations.rename_key(f"{owner}.{name.getText().strip()}".lstrip("."))
        if found:
            lines += map(migrations.format_renamed_key, found)
            yield name.start.start, name.stop.stop, key.removeprefix(f"{owner}." if owner else "")
            new_value = _spell_values(found[-1]).get(element.getText().strip())
            if new_value is not None:
                yield element.start.start, element.stop.stop, new_value
        yield from _find_replacements(element, key, lines)
