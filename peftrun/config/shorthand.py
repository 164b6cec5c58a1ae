"""What is typed, as Hydra is to read it: `action.` may be left out before a key that the chosen action alone has, and `++` before a field
of PEFT's that the chosen option of group `lora` does not show. Light.

`peftrun action=replay run=FOLDER` is `peftrun action=replay action.run=FOLDER`; records and messages know the full form alone.
Conditions need no quotes but the shell's: where='loss<0.5 and lora.r>=8' is where='"loss<0.5 and lora.r>=8"'.
In templates, system messages and prompts \\n is a line end and \\t a tab, since a shell has no plain way to type them; in YAML files YAML's own rules hold.
"""

import os
import re
from collections.abc import Sequence
from typing import get_args, get_type_hints

from peftrun.config.paths import GROUPS, config_dir

TOP_LEVEL = (*GROUPS, "seed", "adapter", "active", "allow_base_mismatch", "slots", "template")
SHORT = re.compile(r"([A-Za-z_]\w*)=")
OF_METHOD = re.compile(r"lora\.(\w+)[.=]")
DEFAULT_ACTION = "train"
DEFAULT_METHOD = "lora"
RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
FOLDERS = (RUN_DIR, SWEEP_DIR)  # Hydra makes these itself, as they are named
HOME = re.compile(r"""(?:(?<![^\s:,{\['"])|(?<=file://))~\w*(?=/)""")
MIX = "task.data.mix"  # holds paths and texts
TEXTS = ("task.prompt", "task.completion", "task.system", "action.prompt")
LINE_END = re.compile(r"(?<!\\)\\[nt]")
AS_WRITTEN = "${oc.env:PEFTRUN_NOTHING,''}"  # is empty, and says of the text in which it stands that \n is no line end
ENDS = {"\\n": "\n", "\\t": "\t"}
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""", re.DOTALL)  # in Hydra's grammar
PATH_IN_MIX = re.compile(rf"{QUOTED.pattern}|\bpath:\s*~[^\s,}}]*", re.DOTALL)
TILDE = re.compile(rf"{QUOTED.pattern}|~[^\s,}}\]]*", re.DOTALL)  # outside quotes Hydra cannot read it
CONDITIONS = ("where=", "action.where=")  # hold signs that mean something to Hydra


def expand_shorthand(typed: Sequence[str]) -> list[str]:
    """The same command with the full name of every key, and line ends and home folders as they are."""
    typed = [in_quotes(text) if text.startswith(CONDITIONS) else _expand_home(text) for text in typed]
    asked = [found for text in typed if (found := SHORT.match(text)) and found[1] not in TOP_LEVEL]
    if asked:
        known = keys_of(find_action(typed))
        typed = [f"action.{text}" if (one := SHORT.match(text)) and one[1] in known else text for text in typed]
    return [_mark_added_key(_expand_line_ends(text), typed) for text in typed]


def holds_text(key: str) -> bool:
    """Whether what is typed for this key is text of several lines: a template, a system message, a prompt."""
    return key in TEXTS or key.startswith(MIX)


def escape_line_ends(text: str) -> str:
    """The inverse of what `in_full` does to line ends and tabs, so that an override can be shown on one line."""
    key, sign, value = text.partition("=")
    if not sign or not holds_text(key.lstrip("+")):
        return text
    for written, end in ENDS.items():
        value = value.replace(end, written)
    found = f"{key}={value}"
    return found if _expand_line_ends(found) == text else text


def _expand_line_ends(text: str) -> str:
    key, sign, value = text.partition("=")
    if (
        not sign
        or not holds_text(key.lstrip("+"))
        or not LINE_END.search(value)
        or AS_WRITTEN in value
        or "${oc.create:" in value
    ):
        return text
    if not QUOTED.search(value) and "," not in value:
        value = in_quotes(text).partition("=")[2]
    return f"{key}={QUOTED.sub(lambda part: LINE_END.sub(lambda one: ENDS[one[0]], part[0]), value)}"


def _expand_home(text: str) -> str:
    """With the user's home folder for `~/`, which no shell puts after a key with a dot, and Hydra cannot read."""
    key, sign, value = text.partition("=")
    name = key.lstrip("+")
    if not sign or (
        value[:1] in ("'", '"') and name not in FOLDERS
    ):  # those in quotes are expanded where they are read
        return text
    if name.startswith(MIX) and not name.endswith(".path"):
        return key + sign + PATH_IN_MIX.sub(lambda found: found[0] if found[1] else _expanded(found[0]), value)
    return text if name in TEXTS else key + sign + _expanded(value)


def _expanded(value: str) -> str:
    return HOME.sub(lambda found: os.path.expanduser(found[0]), value)


def tilde_in_quotes(value: str) -> str | None:
    """The value as Hydra can read it, where a `~` stands in it that is no home folder's; None: none does."""
    mended = TILDE.sub(lambda found: found[0] if found[1] else f'"{found[0]}"', value)
    return mended if mended != value else None


def in_quotes(text: str) -> str:
    """In quotes for Hydra, unless it is already, or says nothing, or takes another key's value."""
    key, _, value = text.partition("=")
    if value in ("", "null") or value.startswith("${") or re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL):
        return text
    sign = '"' if "'" in value or '"' not in value else "'"
    escaped = re.sub(rf"(\\*)({sign}|\Z)", lambda found: found[1] * 2 + (f"\\{sign}" if found[2] else ""), value)
    return f"{key}={sign}{escaped}{sign}"


def _mark_added_key(text: str, typed: Sequence[str]) -> str:
    """With the sign by which Hydra takes a key that no file has; whether there is such a field is seen once it is composed."""
    key = OF_METHOD.match(text)
    return f"++{text}" if key and key[1] not in _read_option_keys(_find_option("lora", typed, DEFAULT_METHOD)) else text


def _read_option_keys(option: str) -> set[str]:
    """The keys in the file of an option of group `lora`, and of the option that it builds on; of a team's the default's."""
    file = config_dir() / "lora" / f"{option}.yaml"
    text = (file if file.is_file() else file.with_stem(DEFAULT_METHOD)).read_text(encoding="utf-8")
    parents = re.findall(r"^  - (?!_self_)(\w+)$", text, re.MULTILINE)
    return set(re.findall(r"^(\w+):", text, re.MULTILINE)).union(*map(_read_option_keys, parents))


def find_action(typed: Sequence[str]) -> str:
    """The action that is asked for; of several in a sweep the first."""
    return _find_option("action", typed, DEFAULT_ACTION)


def _find_option(group: str, typed: Sequence[str], default: str) -> str:
    chosen = [text.partition("=")[2] for text in typed if text.startswith(f"{group}=")]
    return chosen[-1].split(",")[0] if chosen else default


def list_actions_with(key: str) -> list[str]:
    """The actions that have a key of this name."""
    return [name for name, keys in _read_action_keys().items() if key in keys]


def keys_of(action: str) -> set[str]:
    """Keys of an action that mean nothing else."""
    return _read_action_keys().get(action, set())


def _read_action_keys() -> dict[str, set[str]]:
    from peftrun.config.schema import actions as action_specs

    kinds = [get_type_hints(kind) for kind in get_args(get_args(action_specs.Action)[0])]
    return {name: hints.keys() - {"name", *TOP_LEVEL} for hints in kinds for name in get_args(hints["name"])}
