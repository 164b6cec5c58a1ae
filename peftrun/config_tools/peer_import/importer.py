"""A config of another tool → an experiment that passes `action=check`. Light."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftrun.composition.composer import Composer
from peftrun.config import override_syntax, paths
from peftrun.config import values as config_values
from peftrun.config_tools import lint_options, scaffold
from peftrun.config_tools.findings import FAULT, parse_key
from peftrun.config_tools.peer_import import experiment_file, key_rules
from peftrun.config_tools.peer_import.draft import Draft, settle
from peftrun.config_tools.peer_import.peer_files import read_peer_config
from peftrun.config_tools.peer_import.translation import CARRIED, NO_COUNTERPART, PeerConfig, Translation
from peftrun.errors import ArtifactError, ConfigError

EXPERIMENT = "experiment"
USER_FILES = ("task.data.", "device.deepspeed_config")  # keys of files that may be on another machine
MAX_ROUNDS = 40  # each removes at least one setting


@dataclass(frozen=True)
class ImportedExperiment:
    """The experiment.

    Attributes:
        settings: full key or group → value.
        lines: what became of each key of theirs.
        faults: what `action=check` says of it, and nothing here could repair.
    """

    config: PeerConfig
    path: Path
    text: str
    settings: dict[str, Any]
    lines: list[Translation]
    faults: list[str]

    @property
    def command(self) -> str:
        """What to type to run it."""
        return format_command(self.path)


def import_config(source: Path, tool: str | None, output: Path | None, typed: Sequence[str], search_path: Sequence[str]) -> ImportedExperiment:  # fmt: skip
    """The experiment for a config of another tool; nothing is written.

    Args: output: its file; None: experiment/TOOL_NAME.yaml. typed: overrides that the experiment holds too, and that win.

    Raises: DataError: the source cannot be read. ConfigError: an override that a file cannot express. ArtifactError: the output
        exists, or has a name that peftrun uses itself.
    """
    config = read_peer_config(source, tool)
    if config.tool == "trl" and not config.command:
        config = replace(config, command=key_rules.name_training(config))
    if config.command and "command" not in config.keys:
        config = replace(config, keys={"command": config.command, **config.keys})
    path = output or Path(EXPERIMENT) / f"{_make_name(config)}.yaml"
    _check_output(path)
    lines = key_rules.translate_config(config)
    draft = Draft([*lines, *_read_typed(typed)], [*key_rules.find_defaults(config)])
    settle(draft)
    faults = _remove_faults(config, draft, path, search_path)
    text = experiment_file.render_experiment(config, draft, format_command(path))
    return ImportedExperiment(config, path, text, draft.settings, lines, faults)


def format_command(path: Path) -> str:
    """The command that runs an experiment; Hydra finds it in a folder of that name."""
    name = path.stem
    if path.parent.name == EXPERIMENT:
        return override_syntax.join_overrides(
            ["peftrun", "--config-dir", str(path.parent.parent), f"{EXPERIMENT}={name}"]
        )
    return f"peftrun --config-dir FOLDER {EXPERIMENT}={name}"


def _make_name(config: PeerConfig) -> str:
    stem = config.path.stem
    if stem in ("config", "adapter_config", "train", "sft"):
        stem = f"{config.path.absolute().parent.name}_{stem}"
    return re.sub(r"\W+", "_", f"{config.tool}_{stem}").strip("_").lower()


def _check_output(path: Path) -> None:
    if path.exists():
        raise ArtifactError(f"action.output={path}: exists already and is never overwritten; name another file")
    if path.suffix != ".yaml":
        raise ConfigError(
            f"action.output={path}: Hydra reads only .yaml files; type action.output={path.with_suffix('.yaml')}"
        )
    if path.stem in paths.list_group_options(EXPERIMENT):
        raise ConfigError(
            f"action.output={path}: peftrun has an experiment of this name, which is found first; type action.output={path.with_stem('my_' + path.stem)}"
        )


def _read_typed(typed: Sequence[str]) -> list[Translation]:
    """Overrides typed with the import, as lines that win over the others."""
    draft = scaffold.parse_overrides(typed)
    values = {**draft.choices, **(config_values.flatten_keys(draft.values) if draft.values else {})}
    return [Translation("typed", value, CARRIED, {target: value}) for target, value in values.items()]


def _remove_faults(config: PeerConfig, draft: Draft, path: Path, search_path: Sequence[str]) -> list[str]:
    """Removes settings that peftrun refuses, with what it says of them, until the experiment is valid. Returns what is left."""
    lines: list[str] = []
    for _ in range(MAX_ROUNDS):
        lines = _find_faults(experiment_file.render_experiment(config, draft, format_command(path)), path, search_path)
        # One message a key: the first removes it. Files that are not here yet stay named, and the message too.
        removable = {
            parse_key(line): line
            for line in reversed(lines)
            if not (parse_key(line).startswith(USER_FILES) and line.partition(": ")[2].startswith(paths.NO_FILE))
        }
        if not any([_remove(draft, line) for line in removable.values()]):
            break
    return lines


def _remove(draft: Draft, line: str) -> bool:
    """Removes the setting that a message begins with; else those of its option or below it."""
    key, (_, _, reason) = parse_key(line), line.partition(": ")
    group = key.partition(".")[0]
    for matches in (
        key.__eq__,
        lambda target: "." in target and "." in key and (key.startswith(f"{target}.") or target.startswith(f"{key}.")),
        lambda target: target == group != "task",
    ):
        if draft.drop(matches, NO_COUNTERPART, reason or line):
            return True
    return False


def _find_faults(text: str, path: Path, search_path: Sequence[str]) -> list[str]:
    """What `action=check` says of the experiment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / EXPERIMENT / path.name
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        option = lint_options.Option(file, is_builtin=False)
        lint_options.resolve_option(option, Composer([f"file://{folder}", *search_path]))
        return [finding.line for finding in option.found if finding.verdict == FAULT]
