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
from peftrun.composition.composer import Compositions
from peftrun.composition.spec import build_spec
from peftrun.config import paths, template_params
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools import lint_files
from peftrun.config_tools.findings import FAULT, FINE, Finding, key_of, place, says_absent, verdict
from peftrun.errors import ConfigError

FILLED = {"str": "TEXT", "int": 8, "float": 0.5, "bool": True}


@dataclass
class Option:
    """One option. `ours`: it ships with peftrun. `spec`: the run that it makes, once it is known to be fine."""

    path: Path
    ours: bool
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
        self.found.append(Finding(place(self.path, line), self.name, kind, line))


def all_of(folders: Sequence[Path], hidden: Sequence[Path]) -> Iterator[Option]:
    """Every option that is read, peftrun's own first. `hidden`: files of a team that are not."""
    for folder in (paths.config_dir(), *folders):
        for group in paths.GROUPS:
            for path in sorted((folder / group).glob("*.yaml")):
                if path not in hidden:
                    yield Option(path, folder == paths.config_dir())


def resolve(option: Option, compositions: Compositions) -> None:
    """Fills in `found` and `spec`."""
    if not option.ours:
        option.found += lint_files.of_file(option.path)
    if any(one.verdict == FAULT for one in option.found):
        return
    lines = _composed(option, [option.name], compositions)
    if any(verdict(line) == FAULT for line in lines) and _as_it_says(option, compositions):
        lines = []
    for line in lines:
        option.add(verdict(line), line)
    if not lines:
        option.found.append(Finding(str(option.path), option.name, FINE))


def _as_it_says(option: Option, compositions: Compositions) -> bool:
    """Whether the option is fine beside what its own second line types with it."""
    for command in lint_files.commands(option.path):
        try:
            typed = [text for text in shlex.split(command)[1:] if not text.startswith("-")]
        except ValueError:
            continue
        more = typed if option.name in typed else []
        lines = _composed(option, more, compositions) if len(more) > 1 else [FAULT]
        keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in more}
        if all(
            verdict(line) != FAULT or (says_absent(line) and key_of(line).partition(".")[0] in keys) for line in lines
        ):
            return True
    return False


def _composed(option: Option, overrides: Sequence[str], compositions: Compositions) -> list[str]:
    """What is wrong with the run that `overrides` compose, whatever the option asks for filled in."""
    try:
        cfg = _with(overrides, compositions)
        asked = _fill(cfg, option.path)
        option.spec = build_spec(cfg)
    except ConfigError as error:
        return [line for line in error.lines if not _asks(option, line, asked)]
    except compose.REFUSALS as error:
        return [compose.in_one_line(error)]
    return []


def _with(overrides: Sequence[str], compositions: Compositions) -> DictConfig:
    choices = tuple(text for text in overrides if compositions.chooses(text))
    cfg = copy.deepcopy(compositions.chosen(choices))
    ConfigLoaderImpl._apply_overrides_to_config(
        [compositions.parsed(text) for text in overrides if text not in choices], cfg
    )
    return cfg


def _fill(cfg: DictConfig, stand_in: Path) -> set[str]:
    """Gives every key that has no value one, and every slot for a path a file that is there; returns those keys, and those that read them."""
    values: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    kinds = {f"slots.{name}": slot["type"] for name, slot in template_params.of_template(values).items()}
    leaves = config.flatten(values)
    filled = {key for key, value in leaves.items() if _is_open(key, value, kinds)}
    for key in filled:
        OmegaConf.update(cfg, key, FILLED.get(kinds.get(key, "path"), str(stand_in)))
    readers = {key for key, value in leaves.items() if any(f"slots.{name}" in filled for name in _slots_in(value))}
    return filled | readers


def _is_open(key: str, value: Any, kinds: dict[str, str]) -> bool:
    if key.startswith("slots.") and key not in kinds:
        return False  # it is declared nowhere, which is told
    return value == config.MISSING or (kinds.get(key) == "path" and value is not None)


def _slots_in(value: Any) -> list[str]:
    return template_params.READS.findall(value) if isinstance(value, str) else []


def _asks(option: Option, line: str, asked: set[str]) -> bool:
    """Whether a line is about a value that only whoever uses the option can give."""
    if option.group == "action" and (" is not set" in line or re.match(r"adapter\b", line)):
        return True
    return key_of(line) in asked
