"""Command-line flags as Hydra reads them, and advice for flags of other tools. Light."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise

from peftrun.checks import folder_hints, peer_keys
from peftrun.checks.unknown_keys import LOGIN, find_nearest_key, is_secret, quote_for_shell
from peftrun.compat.hydra import build_flag_parser
from peftrun.config import paths, shorthand

SHORT = ("-h", "-c", "-p", "-r", "-m", "-s", "-i")  # Hydra's; the value may follow in the same word
FILE_FLAGS = ("config", "config_file", "yaml")


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace | None, list[str]]:
    """Hydra's parsed flags, which may stand between the overrides; or None, and one message per flag that it does not know."""
    parser, known = build_flag_parser()
    # Before argparse, which would abbreviate, or exit with a usage message.
    unknown = [*_find_unknown_flags(argv, known)]
    if unknown:
        action = shorthand.find_action(argv)
        return None, [_explain_flag(flag, value, action) for flag, value in unknown]
    parser.exit_on_error = False  # raise ArgumentError in place of exiting with a usage message
    try:
        return parser.parse_intermixed_args(argv), []
    except argparse.ArgumentError as error:
        flag = str(error.argument_name).partition("/")[0]
        return None, [f"{flag}: {error.message}; `peftrun --help` shows its value"]


def _find_unknown_flags(argv: Sequence[str], options: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Unknown flags, each with its value: after an equals sign, or the next word."""
    for word, next_word in pairwise([*argv, "-"]):
        flag, sign, value = word.partition("=")
        if not flag.startswith("-") or flag in options:
            continue
        # As in argparse: a value may be glued to a short flag, and a long one may be abbreviated.
        is_long = flag.startswith("--")
        if (is_long and sum(option.startswith(flag) for option in options) == 1) or (
            not is_long and flag.startswith(SHORT)
        ):
            continue
        is_switch = next_word.startswith("-") or "=" in next_word
        yield flag, value if sign else None if is_switch else next_word


def _explain_flag(flag: str, value: str | None, action: str) -> str:
    name, word = flag.lstrip("-").replace("-", "_"), flag if value is None else f"{flag} {value}"
    if name in FILE_FLAGS:
        return f"{word}: no file of values can be passed; {peer_keys.FILE}"
    if is_secret(name, value):
        return f"{flag}: {LOGIN}"
    advice = _suggest_override(name, "true" if value is None else value, action)
    if advice is None:
        return f"{word}: there is no such flag; `peftrun --hydra-help` lists them, and values are set by key=value"
    remedy = f"type {advice}" if advice else "this flag of another tool is not needed here: omit it"
    return f"{word}: values are set by key=value; {remedy}"


def _suggest_override(name: str, value: str, action: str) -> str | None:
    """The override to type for a flag; empty: none is needed; None: the flag is unknown."""
    # Other tools have flags such as `--model PATH`, which is a group here.
    if name in paths.GROUPS:
        options = {group: paths.list_group_options(group) for group in paths.GROUPS}
        return f"{name}={value}" if value in options[name] else peer_keys.translate_option(name, value, options)
    override = peer_keys.translate_key(name, value)
    if override is None and name not in shorthand.keys_of(action):
        override = folder_hints.place(action, name, value)
    if override is not None:
        return override
    from peftrun.composition import compose  # slow, and only needed for unknown names

    keys = compose.list_default_keys(action if action in paths.list_group_options("action") else None)
    nearest = name if f"action.{name}" in keys else find_nearest_key(name, keys)
    return quote_for_shell(f"{nearest}={value}") if nearest else None
