"""The flags of a command line, as Hydra reads them; and what to type for those that other tools have. Light."""

import argparse
from collections.abc import Iterator, Sequence

from hydra._internal.utils import get_args_parser

from peftrun.checks import folder_hints, peer_keys
from peftrun.checks.unknown_keys import LOGIN, find_nearest_key, is_secret, quote_for_shell
from peftrun.config import paths, shorthand

SHORT = ("-h", "-c", "-p", "-r", "-m", "-s", "-i")  # Hydra's, which may be followed by a value in one word
NAMES_A_FILE = ("config", "config_file", "yaml")


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace | None, list[str]]:
    """Hydra's own reading, and a line for each word that it cannot place; None where it can read nothing."""
    parser = get_args_parser()
    unknown = [*_find_unknown_flags(argv, [text for one in parser._actions for text in one.option_strings])]
    if unknown:
        action = shorthand.find_action(argv)
        return None, [_explain_flag(flag, value, action) for flag, value in unknown]
    parser.exit_on_error = False
    try:
        arguments, left = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        flag = str(error.argument_name).partition("/")[0]
        return None, [f"{flag}: {error.message}; `peftrun --help` says what stands after it"]
    return arguments, [
        f"{word}: stands after a flag that stands after a key=value; type all flags first: peftrun --config-dir DIR {word}"
        for word in left
    ]


def _find_unknown_flags(argv: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags that there are not, each with its value: behind an equals sign, or the next word."""
    for place, word in enumerate(argv):
        flag, sign, value = word.partition("=")
        if not flag.startswith("-") or _is_flag(flag, known):
            continue
        following = argv[place + 1] if place + 1 < len(argv) else "-"
        alone = following.startswith("-") or "=" in following
        yield flag, value if sign else None if alone else following


def _is_flag(flag: str, known: Sequence[str]) -> bool:
    if not flag.startswith("--"):
        return flag in known or flag.startswith(SHORT)
    return flag in known or sum(one.startswith(flag) for one in known) == 1


def _explain_flag(flag: str, value: str | None, action: str) -> str:
    name, word = flag.lstrip("-").replace("-", "_"), flag if value is None else f"{flag} {value}"
    if name in NAMES_A_FILE:
        return f"{word}: no file of values is named; {peer_keys.FILE}"
    if is_secret(name, value):
        return f"{flag}: {LOGIN}"
    advice = _suggest_override(name, "true" if value is None else value, action)
    if advice is None:
        return f"{word}: there is no such flag; `peftrun --hydra-help` lists them, and values are set by key=value"
    what = f"type {advice}" if advice else "another tool's, which needs nothing here: omit it"
    return f"{word}: values are set by key=value; {what}"


def _suggest_override(name: str, value: str, action: str) -> str | None:
    """What to type for a flag; empty: nothing; None: it is not known."""
    if name in paths.GROUPS:
        options = {group: paths.list_group_options(group) for group in paths.GROUPS}
        return f"{name}={value}" if value in options[name] else peer_keys.translate_option(name, value, options)
    meant = peer_keys.translate_key(name, value)
    meant = (
        folder_hints.place(action, name, value) if meant is None and name not in shorthand.keys_of(action) else meant
    )
    if meant is not None:
        return meant
    from peftrun.composition import compose  # which takes time

    known = compose.list_default_keys(action if action in paths.list_group_options("action") else None)
    near = name if f"action.{name}" in known else find_nearest_key(name, known)
    return quote_for_shell(f"{near}={value}") if near else None
