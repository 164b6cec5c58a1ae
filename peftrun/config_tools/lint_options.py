"""Each option composed, with defaults elsewhere, and held against every rule; what it asks for is filled in. Light: 50 ms an option."""

import copy
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from peftrun.composition import compose
from peftrun.composition.composer import Composer
from peftrun.composition.spec import build_spec
from peftrun.config import paths, template_params
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
    """One option. `ours`: it ships with peftrun. `spec`: the run that it makes, once it is known to be fine."""

    path: Path
    is_builtin: bool
    spec: RunSpec | None = None
    found: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is typed for it."""
        return f"{self.path.parent.name}={self.path.stem}"

    @property
    def group(self) -> str:
        """Its group."""
        return self.path.parent.name

    def add(self, kind: str, line: str) -> None:
        """Notes what was found, with the place in the file that it is about."""
        self.found.append(Finding(locate_key(self.path, line), self.name, kind, line))


def list_options(folders: Sequence[Path], hidden: Sequence[Path]) -> Iterator[Option]:
    """Every option that is read, peftrun's own first. `hidden`: files of a team that are not."""
    for folder in (paths.config_dir(), *folders):
        for group in paths.GROUPS:
            for path in sorted((folder / group).glob("*.yaml")):
                if path not in hidden:
                    yield Option(path, folder == paths.config_dir())


def resolve_option(option: Option, compositions: Composer) -> None:
    """Fills in `found` and `spec`."""
    if not option.is_builtin:
        option.found += lint_files.lint_file(option.path)
    if any(one.verdict == FAULT for one in option.found):
        return
    lines = _find_compose_faults(option, [option.name], compositions)
    if any(classify_line(line) == FAULT for line in lines) and _is_fine_as_documented(option, compositions):
        lines = []
    for line in lines:
        option.add(classify_line(line), line)
    if not lines:
        option.found.append(Finding(str(option.path), option.name, FINE))


def _is_fine_as_documented(option: Option, compositions: Composer) -> bool:
    """Whether the option is fine beside what its own second line types with it."""
    for command in lint_files.parse_commands(option.path):
        try:
            typed = [text for text in shlex.split(command)[1:] if not text.startswith("-")]
        except ValueError:
            continue
        more = typed if option.name in typed else []
        lines = _find_compose_faults(option, more, compositions) if len(more) > 1 else [FAULT]
        keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in more}
        if all(
            classify_line(line) != FAULT or (reports_missing_file(line) and parse_key(line).partition(".")[0] in keys)
            for line in lines
        ):
            return True
    return False


def _find_compose_faults(option: Option, overrides: Sequence[str], compositions: Composer) -> list[str]:
    """What is wrong with the run that `overrides` compose, whatever the option asks for filled in."""
    try:
        cfg = _compose_config(overrides, compositions)
        asked = _fill_missing(cfg, option.path)
        option.spec = build_spec(cfg)
    except ConfigError as error:
        return [line for line in error.lines if not _is_user_supplied(option, line, asked)]
    except compose.REFUSALS as error:
        return [compose.summarize_error(error)]
    return []


def _compose_config(overrides: Sequence[str], compositions: Composer) -> DictConfig:
    choices = tuple(text for text in overrides if compositions.is_group_choice(text))
    cfg = copy.deepcopy(compositions.chosen(choices))
    ConfigLoaderImpl._apply_overrides_to_config(
        [compositions.parsed(text) for text in overrides if text not in choices], cfg
    )
    return cfg


def _fill_missing(cfg: DictConfig, stand_in: Path) -> set[str]:
    """Gives every key that has no value one, and every slot for a path a file that is there; returns those keys, and those that read them."""
    values: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    kinds = {f"slots.{name}": slot["type"] for name, slot in template_params.read_declared_params(values).items()}
    leaves = config.flatten_keys(values)
    filled = {key for key, value in leaves.items() if _is_unset(key, value, kinds)}
    for key in filled:
        OmegaConf.update(cfg, key, PLACEHOLDER_VALUES.get(kinds.get(key, "path"), str(stand_in)))
    readers = {key for key, value in leaves.items() if any(f"slots.{name}" in filled for name in _find_slots(value))}
    return filled | readers


def _is_unset(key: str, value: Any, kinds: dict[str, str]) -> bool:
    if key.startswith("slots.") and key not in kinds:
        return False  # it is declared nowhere, which is told
    return value == config.MISSING or (kinds.get(key) == "path" and value is not None)


def _find_slots(value: Any) -> list[str]:
    return template_params.REFERENCE.findall(value) if isinstance(value, str) else []


def _is_user_supplied(option: Option, line: str, asked: set[str]) -> bool:
    """Whether a line is about a value that only whoever uses the option can give."""
    if option.group == "action" and (" is not set" in line or re.match(r"adapter\b", line)):
        return True
    return parse_key(line) in asked
