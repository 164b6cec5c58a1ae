"""What can be said of a team's YAML files without composing them. Light."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftrun.composition import compose
from peftrun.config import migrations, paths
from peftrun.config.search_path import packages, shadows
from peftrun.config_tools.findings import FAULT, NOTE, Finding

GLOBAL = "# @package _global_"
COMMAND = "# peftrun "


def lint_folders(folders: Sequence[Path]) -> Iterator[Finding]:
    """What is wrong with where files lie: packages that are not there, names that are taken, folders that are no group."""
    for name, package in packages.find_broken_packages().items():
        yield Finding(
            package,
            f"{packages.GROUP} {name}",
            FAULT,
            f"package {package} has no folder here; install it again, or mend the entry point",
        )
    for path, read in shadows.find_shadowed_configs(folders).items():
        verdict = NOTE if shadows.is_of_working_copy(path, read) else FAULT
        yield Finding(
            str(path), f"{path.parent.name}={path.stem}", verdict, shadows.format_shadow(path, read).partition(": ")[2]
        )
    for folder in folders:
        yield from _find_stray_files(folder)


def _find_stray_files(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.yaml")):
        yield Finding(
            str(path),
            path.stem,
            NOTE,
            f"lies in no group, so nothing reads it; put it into one of {', '.join(paths.GROUPS)}",
        )
    for inner in sorted(one for one in folder.iterdir() if one.is_dir() and one.name not in (*paths.GROUPS, "hydra")):
        if any(inner.glob("*.yaml")):
            near = (get_close_matches(inner.name, paths.GROUPS, n=1) or ["experiment"])[0]
            yield Finding(
                str(inner),
                inner.name,
                FAULT,
                f"there is no group {inner.name}; call the folder {near}, or one of {', '.join(paths.GROUPS)}",
            )
    for path in sorted(folder.glob("*/*.yml")):
        yield Finding(str(path), path.stem, FAULT, f"Hydra reads .yaml files alone; call it {path.stem}.yaml")


def lint_file(path: Path) -> Iterator[Finding]:
    """What is wrong with one file by itself; the first fault says why it is not composed."""
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
        yield Finding(str(path), what, FAULT, "is no mapping of keys to values; write `key: VALUE`")
        return
    named = {str(key): value for key, value in values.items()}
    for line in _find_faults(path, text, named):
        yield Finding(str(path), what, FAULT, line)
    for line in _find_notes(path, text, named):
        yield Finding(str(path), what, NOTE, line)


def parse_commands(path: Path) -> list[str]:
    """What the file says is to be typed: its second line in words, alternatives apart."""
    comments = [line for line in path.read_text(encoding="utf-8").splitlines()[:3] if line != GLOBAL]
    typed = comments[1] if len(comments) > 1 and comments[1].startswith(COMMAND) else ""
    return [
        part[part.find("peftrun") :].strip() for part in typed.removeprefix("# ").split("   |") if "peftrun" in part
    ]


def _find_faults(path: Path, text: str, values: dict[str, Any]) -> Iterator[str]:
    if _contains_key(values, "_target_"):
        yield "_target_: names code to be run, which no config may; take it out"
    if path.parent.name == "experiment" and not any(line.strip() == GLOBAL for line in text.splitlines()[:3]):
        yield f"sets keys of all groups only where its first line is `{GLOBAL}`; write it there"


def _find_notes(path: Path, text: str, values: dict[str, Any]) -> Iterator[str]:
    lines = [line for line in text.splitlines()[:3] if line.strip() != GLOBAL]
    option = f"{path.parent.name}={path.stem}"
    if not lines or not re.match(r"# .*\.\)?$", lines[0]):
        yield "its first line does not say what it is; write `# WHAT IT IS.`, which `peftrun --help` shows"
    if len(lines) < 2 or not lines[1].startswith(COMMAND):
        yield f"its second line does not say what to type; write `{COMMAND}{option}`"
    elif not re.search(rf"(^|\s){re.escape(option)}($|[\s,'\"])", lines[1]):
        yield f"its second line does not name it; write `{COMMAND}{option}`"
    whole = path.parent.name == "experiment"
    nested = values if whole else {path.parent.name: values}
    yield from migrations.rename_keys(nested)[1]
    if whole and not isinstance(values.get("template"), dict) and "slots" in values:
        yield "has slots and no template that declares them; write `template: {name: …, version: …, slots: …}`"


def _contains_key(values: Any, key: str) -> bool:
    if isinstance(values, list):
        return any(_contains_key(one, key) for one in values)
    return isinstance(values, dict) and any(name == key or _contains_key(value, key) for name, value in values.items())
