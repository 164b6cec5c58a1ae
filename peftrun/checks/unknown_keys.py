"""Messages for keys that do not exist: our key for another tool's, else the most similar key. Light."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches

from peftrun.checks import peer_keys
from peftrun.config.migrations import RENAMED

SELECTOR_KEYS = (
    "action.name",
    "tracker.name",
    "lora.method",
    "task.objective.name",
)  # set by choosing a group's option
LOGIN = "secrets are not typed: the Hub uses `hf auth login` or HF_TOKEN, Weights & Biases `wandb login`; omit it"
# Other tools' keys of secrets, whose values must not be printed.
SECRETS = ("hf_use_auth_token", "use_auth_token", "hf_hub_token", "hf_token", "hub_token", "wandb_api_key")
SHELL_SIGNS = frozenset(" \t\n\"'$;&|<>()*`\\")
LIST_HINT = "`peftrun --cfg job` lists every key"


def explain_unknown_key(key: str, value: object, known: list[str]) -> str:
    """One line for a key that does not exist, with what to type where that is clear."""
    name = key.rpartition(".")[2]  # other tools nest their keys differently, so only the last part is compared
    if is_secret(name, value):
        return f"{key}: there is no such key; {LOGIN}"
    translation, message = peer_keys.translate_key(key, value), f"{key}={value}: there is no such key"
    if translation == peer_keys.DEFAULT:
        return f"{message}; `{name}={value}` of other tools is not needed: omit it"
    if translation:
        return f"{message}; type {translation}"
    nearest = find_nearest_key(key, known) or _find_renamed_key(name, known)
    if nearest is None:
        return f"{message}; {LIST_HINT}"
    if nearest.endswith("_env"):  # the value may be the secret itself, so it is not printed
        return f"{key}: there is no such key; {nearest} is the name of an environment variable with the secret: type {nearest}=VARIABLE"
    return f"{message}; did you mean {nearest}? type {quote_for_shell(f'{nearest}={peer_keys.VALUES.get(str(value), value)}')}"


def is_like_nothing(key: str, value: object, known: list[str]) -> bool:
    """Whether it is neither another tool's key nor spelled like one of the known ones."""
    return peer_keys.translate_key(key, value) is None and find_nearest_key(key, known) is None


def _find_renamed_key(name: str, known: list[str]) -> str | None:
    """The only known key whose last part was `name` once, or None. (Full keys under old names are renamed before.)"""
    found = [new for old, (new, _) in RENAMED.items() if old.rpartition(".")[2] == name and new in known]
    return found[0] if len(found) == 1 else None


def is_secret(name: str, value: object) -> bool:
    """Whether the value must not be printed: another tool's key for a secret, or a token of the Hub."""
    return name in SECRETS or str(value).startswith("hf_")


def find_nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The key that is most likely meant, or None.

    That is the only key with the same last part; else the most similar one of the same mapping, or of all mappings if
    none was typed.
    """
    owner, _, last = key.rpartition(".")
    last_parts = {name: name.rpartition(".")[2] for name in known if name not in SELECTOR_KEYS}
    same = [name for name, part in last_parts.items() if part == last]
    if same:
        return same[0] if len(same) == 1 else None  # several mappings have it: the choice would be a guess
    siblings = {part: name for name, part in last_parts.items() if not owner or name.rpartition(".")[0] == owner}
    if not owner:  # names of groups take precedence over keys
        siblings |= {name.partition(".")[0]: name.partition(".")[0] for name in [*last_parts, "experiment"]}
    nearest = find_close_match(last, siblings)
    if nearest:
        return siblings[nearest]
    matches = get_close_matches(key, last_parts, n=1, cutoff=0.85) if not siblings else []
    return matches[0] if matches else None


def find_close_match(word: str, words: Iterable[str]) -> str | None:
    """The most similar word, or None."""
    # One wrong letter of three gives a ratio of 0.67.
    matches = get_close_matches(word, list(words), n=1, cutoff=0.75 if len(word) > 3 else 0.65)
    return matches[0] if matches else None


def quote_for_shell(text: str) -> str:
    """`text` in quotes if a shell would split it or change it; a list in brackets stays as it is read best."""
    return shlex.quote(text) if SHELL_SIGNS & set(text) else text
