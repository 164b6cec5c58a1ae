"""What is typed, as Hydra is to read it: `action.` may be left out before a key that the chosen action alone has. Light.

`peftrun action=replay run=FOLDER` is `peftrun action=replay action.run=FOLDER`; records and messages know the full form alone.
Conditions need no quotes but the shell's: where='loss<0.5 and lora.r>=8' is where='"loss<0.5 and lora.r>=8"'.
In templates, system messages and prompts \\n is a line end and \\t a tab, since a shell has no plain way to type them; in YAML files YAML's own rules hold.
"""

import os
import re
from collections.abc import Sequence
from typing import get_args, get_type_hints

from peftrun.paths import GROUPS

TOP_LEVEL = (*GROUPS, "seed", "adapter", "active", "allow_base_mismatch", "slots", "template")
SHORT = re.compile(r"([A-Za-z_]\w*)=")
DEFAULT_ACTION = "train"
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # Hydra makes these itself, as they are named
HOME = re.compile(r"""(?<![^\s:,{\['"])~\w*(?=/)""")
TEXTS = ("task.prompt", "task.completion", "task.system", "action.prompt")
LINE_END = re.compile(r"(?<!\\)\\[nt]")
AS_WRITTEN = "${oc.env:PEFTRUN_NOTHING,''}"  # is empty, and says of the text in which it stands that \n is no line end
ENDS = {"\\n": "\n", "\\t": "\t"}
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""", re.DOTALL)  # in Hydra's grammar
CONDITIONS = ("where=", "action.where=")  # hold signs that mean something to Hydra


def in_full(typed: Sequence[str]) -> list[str]:
    """The same command with the full name of every key, and line ends and home folders as they are."""
    typed = [_quoted(text) if text.startswith(CONDITIONS) else _at_home(text) for text in typed]
    asked = [found for text in typed if (found := SHORT.match(text)) and found[1] not in TOP_LEVEL]
    if asked:
        known = _keys(action_of(typed))
        typed = [f"action.{text}" if (one := SHORT.match(text)) and one[1] in known else text for text in typed]
    return [_with_line_ends(text) for text in typed]


def holds_text(key: str) -> bool:
    """Whether what is typed for this key is text of several lines: a template, a system message, a prompt."""
    return key in TEXTS or key.startswith("task.data.mix")


def _with_line_ends(text: str) -> str:
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
        value = _quoted(text).partition("=")[2]
    return f"{key}={QUOTED.sub(lambda part: LINE_END.sub(lambda one: ENDS[one[0]], part[0]), value)}"


def _at_home(text: str) -> str:
    """With the user's home folder for `~/`, which no shell puts after a key with a dot, and Hydra cannot read."""
    key, sign, value = text.partition("=")
    quoted = value[:1] in ("'", '"')
    if (
        not sign or holds_text(key) or (quoted and key not in FOLDERS)
    ):  # those in quotes are expanded where they are read
        return text
    return key + sign + HOME.sub(lambda found: os.path.expanduser(found[0]), value)


def _quoted(text: str) -> str:
    """In quotes for Hydra, unless it is already, or says nothing, or takes another key's value."""
    key, _, value = text.partition("=")
    if value in ("", "null") or value.startswith("${") or re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL):
        return text
    sign = '"' if "'" in value or '"' not in value else "'"
    escaped = re.sub(rf"(\\*)({sign}|\Z)", lambda found: found[1] * 2 + (f"\\{sign}" if found[2] else ""), value)
    return f"{key}={sign}{escaped}{sign}"


def action_of(typed: Sequence[str]) -> str:
    """The action that is asked for; of several in a sweep the first."""
    chosen = [text.partition("=")[2] for text in typed if text.startswith("action=")]
    return chosen[-1].split(",")[0] if chosen else DEFAULT_ACTION


def actions_with(key: str) -> list[str]:
    """The actions that have a key of this name."""
    return [name for name, keys in _actions().items() if key in keys]


def _keys(action: str) -> set[str]:
    """Keys of an action that mean nothing else."""
    return _actions().get(action, set())


def _actions() -> dict[str, set[str]]:
    from peftrun import action_specs

    kinds = [get_type_hints(kind) for kind in get_args(get_args(action_specs.Action)[0])]
    return {name: hints.keys() - {"name", *TOP_LEVEL} for hints in kinds for name in get_args(hints["name"])}
