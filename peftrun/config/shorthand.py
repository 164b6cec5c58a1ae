"""Expand the command line to what Hydra reads. Light.

- `action.` may be omitted before a key that only the chosen action has, and `++` before a PEFT field that the chosen option of group
  `lora` does not list, and before what `trainer.arguments` and `model.arguments` do not hold yet. `peftrun action=replay run=FOLDER` is `peftrun action=replay action.run=FOLDER`; records and messages use the full form.
- Conditions need no quotes but the shell's: where='loss<0.5 and lora.r>=8' is where='"loss<0.5 and lora.r>=8"'.
- In templates, system messages and prompts \\n is a line end and \\t a tab, since a shell has no plain way to type them; in YAML files
  YAML's own rules hold.
"""

import os
import re
from collections.abc import Sequence
from typing import get_args, get_type_hints

from peftrun.config import old_overrides
from peftrun.config.paths import GROUPS, config_dir

TOP_LEVEL = (*GROUPS, "seed", "adapter", "active_adapter", "allow_base_mismatch", "params", "template")
FROM = re.compile(r"(action\.)?from=")  # of action=import: a word of Python, which no field can be called
SHORT = re.compile(r"([A-Za-z_]\w*)=")
OF_ARGUMENTS = ("trainer.arguments.", "model.arguments.")
OF_METHOD = re.compile(r"lora\.(\w+)[.=]")
DEFAULT_ACTION = "train"
DEFAULT_METHOD = "lora"
RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
FOLDERS = (RUN_DIR, SWEEP_DIR)  # created by Hydra itself, which does not expand ~
HOME = re.compile(r"""(?:(?<![^\s:,{\['"])|(?<=file://))~\w*(?=/)""")
MIXTURE = "task.data.mixture"  # contains both paths and texts
TEXTS = ("task.prompt_template", "task.completion_template", "task.system_prompt", "action.prompt")
LINE_END = re.compile(r"(?<!\\)\\[nt]")
AS_WRITTEN = "${oc.env:PEFTRUN_NOTHING,''}"  # resolves to nothing; marks a text in which \n is not a line end
ENDS = {"\\n": "\n", "\\t": "\t"}
QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""", re.DOTALL)  # in Hydra's grammar
PATH_IN_MIXTURE = re.compile(rf"{QUOTED.pattern}|\bpath:\s*~[^\s,}}]*", re.DOTALL)
TILDE = re.compile(rf"{QUOTED.pattern}|~[^\s,}}\]]*", re.DOTALL)  # Hydra's grammar has no ~ outside quotes
CONDITIONS = ("where=", "action.where=")  # contain characters of Hydra's grammar


def expand_overrides(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """As `expand_shorthand`, with today's names of renamed keys and options; and a line for each old name."""
    overrides, lines = old_overrides.rename_overrides(typed)
    overrides, more_lines = old_overrides.rename_inside(expand_shorthand(overrides))
    return overrides, list(dict.fromkeys([*lines, *more_lines]))


def expand_shorthand(typed: Sequence[str]) -> list[str]:
    """The overrides with the full name of every key, and with line ends and home folders expanded."""
    typed = [in_quotes(text) if text.startswith(CONDITIONS) else _expand_home(text) for text in typed]
    typed = [FROM.sub("action.source=", text) if FROM.match(text) else text for text in typed]
    if any((match := SHORT.match(text)) and match[1] not in TOP_LEVEL for text in typed):
        # Only now, since it imports the schema, whose pydantic classes take a while to build.
        action_keys = keys_of(find_action(typed))
        typed = [
            f"action.{text}" if (match := SHORT.match(text)) and match[1] in action_keys else text for text in typed
        ]
    expanded = []
    for text in map(_expand_line_ends, typed):
        match = OF_METHOD.match(text)
        is_new = match and match[1] not in read_option_keys(_find_option("lora", typed, DEFAULT_METHOD))
        # Hydra refuses a key that no file has without `++`. Whether PEFT has the field is checked after composition.
        expanded.append(f"++{text}" if is_new or text.startswith(OF_ARGUMENTS) else text)
    return expanded


def holds_text(key: str) -> bool:
    """Whether the value of this key may be text of several lines: a template, a system message, a prompt."""
    return key in TEXTS or key.startswith(MIXTURE)


def escape_line_ends(text: str) -> str:
    """The inverse of `expand_shorthand` for line ends and tabs, so that an override can be shown on one line."""
    key, sign, value = text.partition("=")
    if not sign or not holds_text(key.lstrip("+")):
        return text
    for written, end in ENDS.items():
        value = value.replace(end, written)
    escaped = f"{key}={value}"
    return escaped if _expand_line_ends(escaped) == text else text  # only if it is read back as the same text


def _expand_line_ends(text: str) -> str:
    key, sign, value = text.partition("=")
    has_line_ends = sign and holds_text(key.lstrip("+")) and LINE_END.search(value)
    if not has_line_ends or AS_WRITTEN in value or "${oc.create:" in value:
        return text
    if not QUOTED.search(value) and "," not in value:  # a comma may separate the values of a sweep
        value = in_quotes(text).partition("=")[2]
    return f"{key}={QUOTED.sub(lambda quoted: LINE_END.sub(lambda end: ENDS[end[0]], quoted[0]), value)}"


def _expand_home(text: str) -> str:
    """The override with `~/` expanded: a shell does not expand it after a key with a dot, and Hydra cannot read it."""
    key, sign, value = text.partition("=")
    name = key.lstrip("+")
    is_quoted = value[:1] in ("'", '"')
    if (
        not sign or name in TEXTS or (is_quoted and name not in FOLDERS)
    ):  # quoted paths are expanded where they are read
        return text
    if name.startswith(MIXTURE) and not name.endswith(".path"):  # texts may contain a ~ of their own
        return key + sign + PATH_IN_MIXTURE.sub(lambda match: match[0] if match[1] else _expand_user(match[0]), value)
    return key + sign + _expand_user(value)


def _expand_user(value: str) -> str:
    return HOME.sub(lambda home: os.path.expanduser(home[0]), value)


def tilde_in_quotes(value: str) -> str | None:
    """The value with every unquoted `~` word quoted, as Hydra can read it; None if there is none."""
    quoted = TILDE.sub(lambda match: match[0] if match[1] else f'"{match[0]}"', value)
    return quoted if quoted != value else None


def in_quotes(text: str) -> str:
    """The override with its value quoted for Hydra, unless it is quoted already, empty, null, or an interpolation."""
    key, _, value = text.partition("=")
    if value in ("", "null") or value.startswith("${") or re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL):
        return text
    quote = '"' if "'" in value or '"' not in value else "'"
    # Hydra's grammar doubles backslashes only before a quote, also before the closing one.
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda match: match[1] * 2 + (f"\\{quote}" if match[2] else ""), value)
    return f"{key}={quote}{escaped}{quote}"


def read_option_keys(option: str) -> set[str]:
    """The keys in the file of an option of group `lora` and of its parents; for a team's option those of the default."""
    file = config_dir() / "lora" / f"{option}.yaml"
    text = (file if file.is_file() else file.with_stem(DEFAULT_METHOD)).read_text(encoding="utf-8")
    parents = re.findall(r"^  - (?!_self_)(\w+)$", text, re.MULTILINE)
    return set(re.findall(r"^(\w+):", text, re.MULTILINE)).union(*map(read_option_keys, parents))


def find_action(typed: Sequence[str]) -> str:
    """The chosen action; the first of several in a sweep."""
    return _find_option("action", typed, DEFAULT_ACTION)


def _find_option(group: str, typed: Sequence[str], default: str) -> str:
    options = [text.partition("=")[2] for text in typed if text.startswith(f"{group}=")]
    return options[-1].split(",")[0] if options else default


def list_actions_with(key: str) -> list[str]:
    """The actions with a key of this name."""
    return [name for name, keys in _read_action_keys().items() if key in keys]


def keys_of(action: str) -> set[str]:
    """Keys of an action, without those that are also top-level keys."""
    return _read_action_keys().get(action, set())


def _read_action_keys() -> dict[str, set[str]]:
    from peftrun.config.schema import actions as action_specs

    # Action is Annotated[Union[…], …]; each class has its name as `name: Literal["train"]`.
    fields = [get_type_hints(action) for action in get_args(get_args(action_specs.Action)[0])]
    return {name: hints.keys() - {"name", *TOP_LEVEL} for hints in fields for name in get_args(hints["name"])}
