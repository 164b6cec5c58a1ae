"""Check a command line before anything is composed: run folders, team folders, actions that cannot be swept. Light."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftrun.artifacts.run_layout import RECORD
from peftrun.config import paths
from peftrun.config.shorthand import FOLDERS, RUN_DIR, SWEEP_DIR
from peftrun.errors import ArtifactError, ConfigError, PeftrunError

UNSWEEPABLE = ("action=template", "action=serve", "action=browse")
ADAPTERS = re.compile(r"adapter=\{(?P<pairs>[^{}]*)\}")


def find_problems(overrides: Sequence[str], config_dir: str | None, is_sweep: bool) -> list[PeftrunError]:
    """One error per folder that cannot be used and per action that cannot be swept.

    Args: config_dir: value of `--config-dir`. is_sweep: whether `-m` was typed.
    """
    problems: list[PeftrunError] = [*_check_folders(overrides)]
    for match in filter(None, map(ADAPTERS.fullmatch, overrides)):
        # The second of two adapters of the same name would silently replace the first.
        names = Counter(pair.partition(":")[0].strip(" '\"") for pair in match["pairs"].split(","))
        problems += [
            ConfigError(f"adapter.{name}: is given more than once; give each adapter a name of its own")
            for name, count in names.items()
            if name and count > 1
        ]
    if config_dir:
        problems += [ConfigError(f"--config-dir {line}") for line in check_team_folder(config_dir)]
    if is_sweep:
        folders = [text.partition("=")[2] for text in overrides if text.startswith(f"{RUN_DIR}=")]
        problems += [
            ConfigError(
                f"{RUN_DIR}={folder}: is the folder of a single run, and -m makes several; type {SWEEP_DIR}={folder}"
            )
            for folder in folders
        ]
        problems += [
            ConfigError(f"{text}: cannot be swept; omit -m and give each key one value")
            for text in overrides
            if text in UNSWEEPABLE
        ]
    return problems


def check_team_folder(location: str) -> Iterator[str]:
    """A message if a folder of team configs is missing or holds no group; `pkg://` entries are resolved by Hydra."""
    folder = Path(location.removeprefix("file://"))
    if location.startswith("pkg://"):
        return
    if not folder.is_dir():
        yield f"{location}: there is no such folder; name one laid out like conf/"
    elif not _has_groups(folder):
        inner = next((path for path in sorted(folder.iterdir()) if path.is_dir() and _has_groups(path)), None)
        advice = f"did you mean {inner}?" if inner else "name one laid out like conf/"
        yield f"{location}: holds none of the groups {', '.join(paths.GROUPS)}; {advice}"


def make_run_exists_error(folder: Path | str, key: str = RUN_DIR) -> ArtifactError:
    """The error for a folder that cannot be that of a new run."""
    return ArtifactError(f"{key}={folder}: holds a run already; name a folder that does not exist")


def advise_for_sweep(line: str) -> str:
    """The message with the folder key that applies with -m."""
    return line.replace(f"type {RUN_DIR}=", f"type {SWEEP_DIR}=")


def _check_folders(overrides: Sequence[str]) -> Iterator[PeftrunError]:
    """Folders named on the command line: checked before Hydra writes its own files there."""
    resumed = any(text.startswith("action.resume=") for text in overrides)
    for text in overrides:
        key, _, value = text.partition("=")
        folder = Path(value.strip("'\""))
        if key not in FOLDERS:
            continue
        if not value.strip("'\" "):
            yield ConfigError(f"{key}=: names no folder; name one that does not exist, or omit {key}")
            continue
        file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
        if file:
            yield ArtifactError(f"{key}={folder}: {file} is a file; name a folder that does not exist")
        elif (folder / RECORD).exists() and resumed:
            yield ConfigError(
                f"{key}={folder}: holds a run already, and a resumed run gets a new folder; omit {key} and type action.resume={folder}"
            )
        elif (folder / RECORD).exists():
            yield make_run_exists_error(folder, key)


def _has_groups(folder: Path) -> bool:
    return any((folder / group).is_dir() for group in (*paths.GROUPS, "hydra"))
