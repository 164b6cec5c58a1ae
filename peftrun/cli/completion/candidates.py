"""What may stand where the cursor is: options of groups, keys of the config as composed so far, values of a key, files, flags."""

import shlex
from collections.abc import Iterable, Sequence
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
FOLLOW = {  # what stands after a flag
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-sc": tuple(f"install={shell}" for shell in ("bash", "zsh", "fish")),
}
FOLDER = ("--config-dir", "-cd")
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
PLUGINS = {"hydra/launcher": ["basic"], "hydra/sweeper": ["basic", *(["optuna"] if find_spec("optuna") else [])]}


def find_candidates(line: str) -> dict[str, str]:
    """What the last word of a command may become → what that is. The command stands first; nothing is found for what cannot be read."""
    words, word = _split_line(line)
    before = words[-1] if words else ""
    if before in FOLDER:
        found = dict.fromkeys(values.list_paths(word, folders_alone=True), "")
    elif before in FOLLOW:
        found = dict.fromkeys(FOLLOW[before], "")
    elif word.startswith("-"):
        found = FLAGS
    elif "=" in word:
        found = _complete_value(word, words)
    else:
        found = _complete_key(word, words)
    return {text: about for text, about in found.items() if text.startswith(word) and " " not in text}


def _split_line(line: str) -> tuple[list[str], str]:
    """The whole words behind the command, and the one that is being typed."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation that is not closed yet
        words = line.split()
    ended = not line or line[-1].isspace()
    return (words[1:], "") if ended else (words[1:-1], words[-1])


def _complete_value(word: str, words: Sequence[str]) -> dict[str, str]:
    """Values that may stand behind `key=`; in a sweep also behind a comma."""
    typed, _, value = word.partition("=")
    key, head = typed.lstrip("+"), value.rpartition(",")[0] + "," if "," in value else ""
    if key in (*paths.GROUPS, *HYDRA_GROUPS):
        found = _list_options(key, words)
    else:
        found = dict.fromkeys(values.list_values(key, value, _compose_words(words)[0], words), "")
    return {f"{typed}={head}{text}": about for text, about in found.items()}


def _list_options(group: str, words: Sequence[str]) -> dict[str, str]:
    own = {
        path.stem: read_first_sentence(path)
        for path in paths.list_group_files(group, *packages.list_config_dirs(_find_config_dirs(words)))
    }
    return own | dict.fromkeys(PLUGINS.get(group, []), "of Hydra")


def _find_config_dirs(words: Sequence[str]) -> list[str]:
    """Folders of team configs that a command names."""
    behind = [two for one, two in pairwise(words) if one in FOLDER]
    return [*behind, *(text.partition("=")[2] for text in words if text.startswith("--config-dir="))]


def _compose_words(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration that the words so far compose, and Hydra's part of it; the default one where they compose none."""
    from peftrun.composition import compose
    from peftrun.config import values as config
    from peftrun.errors import PeftrunError
    from peftrun.sweep import launcher

    launcher.register_launchers()
    whole = [text for text in words if "=" in text and not text.startswith("-")]
    for overrides in ([_take_first_value(text) for text in whole], []):
        try:
            found = compose.compose_run(overrides, _find_config_dirs(words))
            return config.resolve_values(found.cfg), found.hydra
        except PeftrunError:
            continue
    return {}, {}


def _take_first_value(text: str) -> str:
    key, _, value = text.partition("=")
    return text if value[:1] in "[{\"'" else f"{key}={value.partition(',')[0]}"


def _complete_key(word: str, words: Sequence[str]) -> dict[str, str]:
    """Keys, one step of their path at a time; groups, to be followed by the name of an option."""
    sign, bare = (word[0], word[1:]) if word[:1] in ("+", "~") else ("", word)
    tree, hydra = _compose_words(words)
    steps = bare.split(".")[:-1]
    if not steps:
        return {f"{sign}{text}": "" for text in (*_list_top_keys(tree, bare), *values.list_short_keys(tree, words))}
    inner: Any = {**tree, "hydra": hydra}
    for step in steps:
        inner = inner.get(step) if isinstance(inner, dict) else None
    prefix = f"{sign}{'.'.join(steps)}."
    return {f"{prefix}{text}": "" for text in _list_public_keys(inner)} if isinstance(inner, dict) else {}


def _list_top_keys(tree: dict[str, Any], bare: str) -> Iterable[str]:
    groups = [f"{group}=" for group in paths.GROUPS]
    of_hydra = [*(f"{group}=" for group in HYDRA_GROUPS), "hydra."] if bare.startswith("h") else []
    return [*groups, *of_hydra, *_list_public_keys(tree)]


def _list_public_keys(mapping: dict[str, Any]) -> list[str]:
    public = {key: value for key, value in mapping.items() if not str(key).startswith("_")}
    return [f"{key}." if isinstance(value, dict) and value else f"{key}=" for key, value in public.items()]
