"""Composes each option with defaults elsewhere and applies all rules; missing values get placeholders. Light: 50 ms per option."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.composition.spec import build_spec
from peftrun.config import old_overrides, paths, template_params
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import lint_files
from peftrun.config_tools.findings import (
    FAULT,
    FINE,
    Finding,
    classify_line,
    locate_key,
    parse_key,
    reports_missing_file,
)
from peftrun.errors import ConfigError

PLACEHOLDER_VALUES = {"str": "TEXT", "int": 8, "float": 0.5, "bool": True}


@dataclass
class Option:
    """An option of a group. `is_builtin`: it ships with peftrun. `spec`: the run that it composes, if it is valid."""

    path: Path
    is_builtin: bool
    spec: RunSpec | None = None
    found: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        """group=option."""
        return f"{self.path.parent.name}={self.path.stem}"

    @property
    def group(self) -> str:
        """The group, which is the name of its folder."""
        return self.path.parent.name

    def add(self, verdict: str, line: str) -> None:
        """Adds a finding, located at the line of the file that sets the message's key."""
        self.found.append(Finding(locate_key(self.path, line), self.name, verdict, line))


def list_options(folders: Sequence[Path], hidden: Sequence[Path]) -> Iterator[Option]:
    """Every option on the search path, peftrun's own first. `hidden`: files that another of the same name shadows."""
    for folder in (paths.config_dir(), *folders):
        for group in paths.GROUPS:
            for path in sorted((folder / group).glob("*.yaml")):
                if path not in hidden:
                    yield Option(path, folder == paths.config_dir())


def resolve_option(option: Option, compositions: Composer) -> None:
    """Sets `found` and `spec` of the option."""
    if not option.is_builtin:
        option.found += lint_files.lint_file(option.path)
        config.mark_reported(finding.line for finding in option.found)  # not once more when Hydra reads the file
    if any(finding.verdict == FAULT for finding in option.found):
        return
    lines = _find_compose_faults(option, [option.name], compositions)
    if any(classify_line(line) == FAULT for line in lines) and _is_fine_as_documented(option, compositions):
        lines = []
    for line in lines:
        option.add(classify_line(line), line)
    if not lines:
        option.found.append(Finding(str(option.path), option.name, FINE))


def _is_fine_as_documented(option: Option, compositions: Composer) -> bool:
    """Whether the option composes with the overrides of the command in its second line, such as `device=offload` does."""
    for command in lint_files.parse_commands(option.path):
        try:
            typed = [text for text in shlex.split(command)[1:] if not text.startswith("-")]
        except ValueError:
            continue
        overrides = old_overrides.rename_recorded(typed) if option.name in typed else []
        lines = _find_compose_faults(option, overrides, compositions) if len(overrides) > 1 else [FAULT]
        keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in overrides}
        # Files and folders that the command names, such as mine.jsonl, are examples.
        if all(
            classify_line(line) != FAULT or (reports_missing_file(line) and parse_key(line).partition(".")[0] in keys)
            for line in lines
        ):
            return True
    return False


def _find_compose_faults(option: Option, overrides: Sequence[str], compositions: Composer) -> list[str]:
    """Problems of the run that `overrides` compose, with placeholders for missing values."""
    try:
        cfg = compositions.compose_config(overrides)
        filled = _fill_missing(cfg, option.path)
        option.spec = build_spec(cfg)
    except ConfigError as error:
        return [line for line in error.lines if not _is_user_supplied(option, line, filled)]
    except compose.REFUSALS as error:
        return [compose.summarize_error(error)]
    return []


def _fill_missing(cfg: DictConfig, existing_file: Path) -> set[str]:
    """Sets a placeholder for every `???`, and `existing_file` for every parameter of type path.

    Returns: the keys that were set, and those that refer to them.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    param_types = {
        f"params.{name}": param["type"] for name, param in template_params.read_declared_params(values).items()
    }
    leaves = config.flatten_keys(values)
    filled = {key for key, value in leaves.items() if _is_unset(key, value, param_types)}
    for key in filled:
        OmegaConf.update(cfg, key, PLACEHOLDER_VALUES.get(param_types.get(key, "path"), str(existing_file)))
    readers = {
        key
        for key, value in leaves.items()
        if isinstance(value, str)
        and any(f"params.{name}" in filled for name in template_params.REFERENCE.findall(value))
    }
    return filled | readers


def _is_unset(key: str, value: Any, param_types: dict[str, str]) -> bool:
    if key.startswith("params.") and key not in param_types:
        return False  # an undeclared parameter, which is reported as such
    return value == config.MISSING or (param_types.get(key) == "path" and value is not None)


def _is_user_supplied(option: Option, line: str, filled: set[str]) -> bool:
    """Whether the message is about a value that only a user of the option can set."""
    if option.group == "action" and (" is not set" in line or re.match(r"adapter\b", line)):
        return True
    return parse_key(line) in filled
