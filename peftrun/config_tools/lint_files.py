"""Checks of a team's YAML files that need no composition. Light."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftrun.composition import compose
from peftrun.config import paths
from peftrun.config.search_path import old_files, packages, shadows
from peftrun.config_tools.findings import FAULT, NOTE, Finding

GLOBAL = "# @package _global_"
COMMAND = "# peftrun "


def lint_folders(folders: Sequence[Path]) -> Iterator[Finding]:
    """Findings on locations: packages without a folder, names that are taken, folders that are not a group."""
    for name, package in packages.find_broken_packages().items():
        yield Finding(
            package,
            f"{packages.GROUP} {name}",
            FAULT,
            f"package {package} has no folder here; install it again, or fix the entry point",
        )
    for path, used_path in shadows.find_shadowed_configs(folders).items():
        verdict = NOTE if shadows.is_of_working_copy(path, used_path) else FAULT
        yield Finding(
            str(path),
            f"{path.parent.name}={path.stem}",
            verdict,
            shadows.format_shadow(path, used_path).partition(": ")[2],
        )
    for folder in folders:
        yield from _find_stray_files(folder)


def _find_stray_files(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.yaml")):
        yield Finding(
            str(path),
            path.stem,
            NOTE,
            f"is in no group, so it is never read; move it into one of {', '.join(paths.GROUPS)}",
        )
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name not in (*paths.GROUPS, "hydra") and any(inner.glob("*.yaml")):
            nearest = (get_close_matches(inner.name, paths.GROUPS, n=1) or ["experiment"])[0]
            yield Finding(
                str(inner),
                inner.name,
                FAULT,
                f"there is no group {inner.name}; call the folder {nearest}, or one of {', '.join(paths.GROUPS)}",
            )
    for path in sorted(folder.glob("*/*.yml")):
        yield Finding(str(path), path.stem, FAULT, f"Hydra reads only .yaml files; call it {path.stem}.yaml")


def lint_file(path: Path) -> Iterator[Finding]:
    """Findings on one file. An option with a fault here is not composed."""
    what = f"{path.parent.name}={path.stem}"
    try:
        text = path.read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, ValueError) as error:
        yield Finding(
            str(path),
            what,
            FAULT,
            compose.summarize_error(error).replace("<unicode string>, ", "").replace("<file>, ", ""),
        )
        return
    if not isinstance(values, dict):
        yield Finding(str(path), what, FAULT, "is not a mapping of keys to values; write `key: VALUE`")
        return
    mapping = {str(key): value for key, value in values.items()}
    if _contains_key(mapping, "_target_"):
        # Hydra's instantiate would call whatever `_target_` names.
        fault = "_target_: names code to run, which a config may not do; remove it"
        yield Finding(str(path), what, FAULT, fault)
    if path.parent.name == "experiment" and not any(line.strip() == GLOBAL for line in text.splitlines()[:3]):
        fault = f"can set keys of all groups only if its first line is `{GLOBAL}`; add it"
        yield Finding(str(path), what, FAULT, fault)
    for line in _find_notes(path, text, mapping):
        yield Finding(str(path), what, NOTE, line)


def parse_commands(path: Path) -> list[str]:
    """The commands of the file's second line, whose alternatives are separated by "   |"."""
    comments = [line for line in path.read_text(encoding="utf-8").splitlines()[:3] if line != GLOBAL]
    commands = comments[1] if len(comments) > 1 and comments[1].startswith(COMMAND) else ""
    # An alternative may begin with words, such as "without torch: peftrun …".
    return [
        text[text.find("peftrun") :].strip() for text in commands.removeprefix("# ").split("   |") if "peftrun" in text
    ]


def _find_notes(path: Path, text: str, values: dict[str, Any]) -> Iterator[str]:
    lines = [line for line in text.splitlines()[:3] if line.strip() != GLOBAL]
    option = f"{path.parent.name}={path.stem}"
    if not lines or not re.match(r"# .*\.\)?$", lines[0]):
        yield "its first line does not say what it is; write `# WHAT IT IS.`, which `peftrun --help` shows"
    if len(lines) < 2 or not lines[1].startswith(COMMAND):
        yield f"its second line does not say what to type; write `{COMMAND}{option}`"
    elif not re.search(rf"(^|\s){re.escape(option)}($|[\s,'\"])", lines[1]):
        yield f"its second line does not name it; write `{COMMAND}{option}`"
    is_experiment = path.parent.name == "experiment"
    is_global = any(line.strip() == GLOBAL for line in text.splitlines()[:3])
    values, old_names = old_files.rename_file(values, path.parent.name, "" if is_global else path.parent.name)
    yield from old_names
    if is_experiment and not isinstance(values.get("template"), dict) and "params" in values:
        yield "sets params, and no template declares them; write `template: {name: …, version: …, params: …}`"


def _contains_key(values: Any, key: str) -> bool:
    if isinstance(values, list):
        return any(_contains_key(item, key) for item in values)
    return isinstance(values, dict) and any(name == key or _contains_key(value, key) for name, value in values.items())
