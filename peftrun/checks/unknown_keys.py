"""What is said of a key that does not exist: what it means here, else what is spelled nearly so, else nothing. Light."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches

from peftrun.checks import peer_keys

SELECTOR_KEYS = ("action.name", "tracker.name", "lora.method", "task.objective.name")  # are chosen by their group
# Hold a secret, which no terminal is to show.
LOGIN = "secrets are not typed: the Hub takes that of `hf auth login` or HF_TOKEN, Weights & Biases that of `wandb login`; omit it"
SECRETS = ("hf_use_auth_token", "use_auth_token", "hf_hub_token", "hf_token", "hub_token", "wandb_api_key")
LIST_HINT = "`peftrun --cfg job` lists every key"


def explain_unknown_key(key: str, value: object, known: list[str]) -> str:
    """One line for a key that does not exist, with what to type where that is clear."""
    last = key.rpartition(".")[2]
    if is_secret(last, value):
        return f"{key}: there is no such key; {LOGIN}"
    meant, given = peer_keys.translate_key(key, value), f"{key}={value}: there is no such key"
    if meant == peer_keys.DEFAULT:
        return f"{given}; another tool's `{last}={value}` needs nothing here: omit it"
    if meant:
        return f"{given}; type {meant}"
    near = find_nearest_key(key, known)
    if near is None:
        return f"{given}; {LIST_HINT}"
    if near.endswith("_env"):  # what was typed may be the secret itself, which no terminal is to show
        return f"{key}: there is no such key; {near} is the name of an environment variable that holds it: type {near}=VARIABLE"
    return f"{given}; did you mean {near}? type {quote_for_shell(f'{near}={peer_keys.VALUES.get(str(value), value)}')}"


def is_secret(name: str, value: object) -> bool:
    """Whether what is typed for this key of another tool is not to be shown."""
    return name in SECRETS or str(value).startswith("hf_")


def find_nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The key of the same last name, or one that is spelled nearly so in the same mapping, anywhere where none was typed. None: none is near."""
    owner, _, last = key.rpartition(".")
    lasts = {name: name.rpartition(".")[2] for name in known if name not in SELECTOR_KEYS}
    same = [name for name, one in lasts.items() if one == last]
    if same:
        return same[0] if len(same) == 1 else None  # of several nobody knows which is meant
    beside = {one: name for name, one in lasts.items() if not owner or name.rpartition(".")[0] == owner}
    if not owner:  # a group's own name comes before a key's
        beside |= {name.partition(".")[0]: name.partition(".")[0] for name in [*lasts, "experiment"]}
    near = find_close_match(last, beside)
    if near:
        return beside[near]
    whole = get_close_matches(key, lasts, n=1, cutoff=0.85) if not beside else []
    return whole[0] if whole else None


def find_close_match(word: str, words: Iterable[str]) -> str | None:
    """The one that is spelled nearly as `word`; of short ones a letter may be wrong."""
    near = get_close_matches(word, list(words), n=1, cutoff=0.75 if len(word) > 3 else 0.65)
    return near[0] if near else None


def quote_for_shell(text: str) -> str:
    """As a shell reads it in one piece."""
    return shlex.quote(text) if " " in text else text
