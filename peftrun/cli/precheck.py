"""What is wrong with a command line before anything is composed: folders that cannot be a run's, team folders of another shape. Light."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftrun.artifacts.run_layout import RECORD
from peftrun.config import paths
from peftrun.config.shorthand import FOLDERS, RUN_DIR, SWEEP_DIR
from peftrun.errors import ArtifactError, ConfigError, PeftrunError

ONCE = ("action=template", "action=serve", "action=browse")  # what a sweep would do for one value of several
ADAPTERS = re.compile(r"adapter=\{(?P<pairs>[^{}]*)\}")


def find_problems(overrides: Sequence[str], config_dir: str | None, swept: bool) -> list[PeftrunError]:
    """One fault for each folder that cannot be used and each action that no sweep repeats.

    Args: config_dir: what `--config-dir` names. swept: whether `-m` was typed.
    """
    found: list[PeftrunError] = [
        *_check_folders(overrides),
        *_check_duplicate_adapters(overrides),
        *(_unused(overrides) if swept else ()),
    ]
    if config_dir:
        found += [ConfigError(f"--config-dir {line}") for line in check_team_folder(config_dir)]
    if swept:
        found += [
            ConfigError(f"{text}: is done once, and no sweep; omit -m and give each key one value")
            for text in overrides
            if text in ONCE
        ]
    return found


def check_team_folder(place: str) -> Iterator[str]:
    """One line where a folder of team configs is not there, or holds no group; `pkg://` places are looked for by Hydra."""
    folder = Path(place.removeprefix("file://"))
    if place.startswith("pkg://"):
        return
    if not folder.is_dir():
        yield f"{place}: there is no such folder; name one laid out like conf/"
    elif not _has_groups(folder):
        inner = next((one for one in sorted(folder.iterdir()) if one.is_dir() and _has_groups(one)), None)
        advice = f"did you mean {inner}?" if inner else "name one laid out like conf/"
        yield f"{place}: holds none of the groups {', '.join(paths.GROUPS)}; {advice}"


def make_run_exists_error(folder: Path | str, key: str = RUN_DIR) -> ArtifactError:
    """What is said of a folder that cannot be a new run's."""
    return ArtifactError(f"{key}={folder}: holds a run already; name a folder that does not exist")


def in_a_sweep(line: str) -> str:
    """Advice on where a run's folder is to be, as it is typed beside -m."""
    return line.replace(f"type {RUN_DIR}=", f"type {SWEEP_DIR}=")


def _unused(overrides: Sequence[str]) -> Iterator[PeftrunError]:
    for text in overrides:
        key, _, value = text.partition("=")
        if key == RUN_DIR:
            yield ConfigError(f"{text}: is the folder of a single run, and -m makes several; type {SWEEP_DIR}={value}")


def _check_folders(overrides: Sequence[str]) -> Iterator[PeftrunError]:
    """Folders named on the command line: seen before Hydra writes its own files there."""
    resumed = any(text.startswith("action.resume=") for text in overrides)
    for text in overrides:
        key, _, value = text.partition("=")
        folder = Path(value.strip("'\""))
        if key not in FOLDERS:
            continue
        if not value.strip("'\" "):
            yield ConfigError(f"{key}=: names no folder; name one that does not exist, or omit {key}")
            continue
        taken = next((one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), None)
        if taken:
            yield ArtifactError(f"{key}={folder}: {taken} is a file; name a folder that does not exist")
        elif (folder / RECORD).exists() and resumed:
            yield ConfigError(
                f"{key}={folder}: holds a run already, and what goes on with it gets a folder of its own; omit {key} and type action.resume={folder}"
            )
        elif (folder / RECORD).exists():
            yield make_run_exists_error(folder, key)


def _check_duplicate_adapters(overrides: Sequence[str]) -> Iterator[PeftrunError]:
    """Of two adapters of one name the second would take the first one's place without a word."""
    for text in overrides:
        if found := ADAPTERS.fullmatch(text):
            names = Counter(pair.partition(":")[0].strip(" '\"") for pair in found["pairs"].split(","))
            for name in [one for one, count in names.items() if one and count > 1]:
                yield ConfigError(f"adapter.{name}: is given more than once; give each adapter a name of its own")


def _has_groups(folder: Path) -> bool:
    return any((folder / group).is_dir() for group in (*paths.GROUPS, "hydra"))
