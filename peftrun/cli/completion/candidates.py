"""Candidates for the word at the cursor: options of groups, keys of the composed config, values of a key, files, flags."""

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from peftrun.cli.completion import values
from peftrun.config import paths
from peftrun.config.paths import read_first_sentence
from peftrun.config.search_path import packages

FLAGS = {
    "--help": "every option with a line of explanation",
    "--version": "versions of peftrun and its libraries",
    "--cfg": "print the composed configuration: job, hydra, all",
    "--config-dir": "a folder of team configs",
    "--multirun": "run every combination",
    "--info": "how the configuration is composed",
    "--hydra-help": "Hydra's own flags",
}
FLAG_VALUES = {  # flag → its values
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-sc": tuple(f"install={shell}" for shell in ("bash", "zsh", "fish")),
}
DIR_FLAGS = ("--config-dir", "-cd")
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
PLUGINS = {"hydra/launcher": ["basic"], "hydra/sweeper": ["basic", *(["optuna"] if find_spec("optuna") else [])]}


def find_candidates(line: str) -> dict[str, str]:
    """Completions of the last word of a command line → description; the first word is the command itself."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    word = words.pop() if line and not line[-1].isspace() else ""
    words = words[1:]
    previous = words[-1] if words else ""
    if previous in DIR_FLAGS:
        candidates = dict.fromkeys(values.list_paths(word, folders_alone=True), "")
    elif previous in FLAG_VALUES:
        candidates = dict.fromkeys(FLAG_VALUES[previous], "")
    elif word.startswith("-"):
        candidates = FLAGS
    elif "=" in word:
        candidates = _complete_value(word, words)
    else:
        candidates = _complete_key(word, words)
    return {
        text: description for text, description in candidates.items() if text.startswith(word) and " " not in text
    }  # a blank would need quotes


def _complete_value(word: str, words: Sequence[str]) -> dict[str, str]:
    """Values for `key=`; in a sweep also after a comma."""
    typed_key, _, value = word.partition("=")
    key, prefix = typed_key.lstrip("+"), value.rpartition(",")[0] + "," if "," in value else ""
    if key in (*paths.GROUPS, *HYDRA_GROUPS):
        dirs = packages.list_config_dirs(_find_config_dirs(words))
        candidates = {path.stem: read_first_sentence(path) for path in paths.list_group_files(key, *dirs)}
        candidates |= dict.fromkeys(PLUGINS.get(key, []), "of Hydra")
    else:
        candidates = dict.fromkeys(values.list_values(key, value, _compose_words(words)[0], words), "")
    return {f"{typed_key}={prefix}{text}": description for text, description in candidates.items()}


def _find_config_dirs(words: Sequence[str]) -> list[str]:
    """Folders of team configs that a command names."""
    dirs = [value for flag, value in pairwise(words) if flag in DIR_FLAGS]
    return [*dirs, *(text.partition("=")[2] for text in words if text.startswith("--config-dir="))]


def _compose_words(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config that the words so far compose, and Hydra's part of it; the default config if they compose none."""
    from peftrun.composition import compose
    from peftrun.config import values as config
    from peftrun.errors import PeftrunError
    from peftrun.sweep import launcher

    launcher.register_launchers()  # so that hydra/launcher=shared_base composes
    typed = []
    for text in words:
        key, sign, value = text.partition("=")
        if sign and not text.startswith("-"):
            # Of a sweep's values the first; commas in a list, a mapping or a quoted text do not separate values.
            typed.append(text if value[:1] in "[{\"'" else f"{key}={value.partition(',')[0]}")
    # The words so far may not compose, such as a key whose option is typed later.
    for overrides in (typed, []):
        try:
            composed = compose.compose_run(overrides, _find_config_dirs(words))
            return config.resolve_values(composed.cfg), composed.hydra
        except PeftrunError:
            continue
    return {}, {}


def _complete_key(word: str, words: Sequence[str]) -> dict[str, str]:
    """Keys, one step of their dotted path at a time, and groups."""
    sign, bare = (word[0], word[1:]) if word[:1] in ("+", "~") else ("", word)
    tree, hydra = _compose_words(words)
    steps = bare.split(".")[:-1]
    if not steps:
        keys = [
            *(f"{group}=" for group in paths.GROUPS),
            *_list_public_keys(tree),
            *values.list_short_keys(tree, words),
        ]
        if bare.startswith("h"):  # Hydra's keys would clutter the list of all
            keys += [*(f"{group}=" for group in HYDRA_GROUPS), "hydra."]
        return {f"{sign}{text}": "" for text in keys}
    node: Any = {**tree, "hydra": hydra}
    for step in steps:
        node = node.get(step) if isinstance(node, dict) else None
    prefix = f"{sign}{'.'.join(steps)}."
    return {f"{prefix}{text}": "" for text in _list_public_keys(node)} if isinstance(node, dict) else {}


def _list_public_keys(mapping: dict[str, Any]) -> list[str]:
    public = {key: value for key, value in mapping.items() if not str(key).startswith("_")}
    return [f"{key}." if isinstance(value, dict) and value else f"{key}=" for key, value in public.items()]
