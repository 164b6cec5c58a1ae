"""The text of an experiment: each value with the key of the other tool that it comes from. Light."""

import json
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from peftrun.config import paths
from peftrun.config.peers import tables
from peftrun.config_tools.peer_import.draft import Draft
from peftrun.config_tools.peer_import.translation import NO_COUNTERPART, PeerConfig, Translation
from peftrun.formatting import format_value

PLAIN = re.compile(r"[A-Za-z_][\w./@+-]*")
MAX_SHOWN = 60  # characters of a value in a comment


def render_experiment(config: PeerConfig, draft: Draft, command: str) -> str:
    """The YAML. `command`: its second line."""
    title = tables.read_table(config.tool).title
    groups = {target: value for target, value in draft.settings.items() if target in paths.GROUPS}
    body = {target: value for target, value in draft.settings.items() if target not in paths.GROUPS}
    lines = ["# @package _global_", f"# Imported from {title}: {config.path.name}.", f"# {command}", "defaults:"]
    lines += [
        f"  - override /{name}: {groups[name]}{_format_origin(draft, name, title)}"
        for name in paths.GROUPS
        if name in groups
    ]
    for owner in ("", *paths.GROUPS):
        names = {target: value for target, value in body.items() if _get_owner(target) == owner}
        if names:
            lines += ["", *([f"{owner}:"] if owner else []), *_render_mapping(draft, names, owner, title)]
    missing = [line for line in draft.lines if line.verdict == NO_COUNTERPART]
    if missing:
        lines += ["", "# Without a counterpart here:", *(f"#   {format_line(line)}: {line.note}" for line in missing)]
    return "\n".join(lines) + "\n"


def format_line(line: Translation) -> str:
    """`key: value` of the other tool, on one line."""
    text = format_value(line.value) if not isinstance(line.value, dict) else _render_value(line.value)
    return f"{line.key}: {text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '…'}"


def _get_owner(target: str) -> str:
    head = target.partition(".")[0]
    return head if head in paths.GROUPS else ""


def _render_mapping(draft: Draft, names: dict[str, Any], owner: str, title: str) -> Iterator[str]:
    """Lines of a mapping; deeper ones follow as mappings of their own."""
    indent = "  " * owner.count(".") + ("  " if owner else "")
    prefix = f"{owner}." if owner else ""
    inner: dict[str, dict[str, Any]] = {}
    for target, value in names.items():
        name, _, rest = target.removeprefix(prefix).partition(".")
        if rest:
            inner.setdefault(name, {})[target] = value
        else:
            yield f"{indent}{name}: {_render_value(value)}{_format_origin(draft, target, title)}"
    for name, below in inner.items():
        yield f"{indent}{name}:"
        yield from _render_mapping(draft, below, f"{prefix}{name}", title)


def _format_origin(draft: Draft, target: str, title: str) -> str:
    """The comment that names the key of the other tool, with its value if that is another."""
    line = draft.origins[target]
    if any(line is default for default in draft.defaults):
        return f" # {title}'s default of {line.key}" if " " not in line.key else f" # {line.key}"
    same = line.value == line.settings[target] and isinstance(line.value, bool) == isinstance(
        line.settings[target], bool
    )
    return f" # {line.key}" if same else f" # {format_line(line)}".replace("\n", " ")


def _render_value(value: Any) -> str:
    """A value as flow YAML that OmegaConf reads back as the same value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_render_value(str(key))}: {_render_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_render_value, value)) + "]"
    if not isinstance(value, str):
        text = json.dumps(value)
        return text if "e" not in text or not isinstance(value, float) or "." in text else text.replace("e", ".0e")
    if PLAIN.fullmatch(value) and OmegaConf.create(f"a: {value}").a == value:
        return value
    return json.dumps(value.replace("${", "\\${"), ensure_ascii=False)
