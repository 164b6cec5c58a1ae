"""All cells of a sweep, composed before any of them runs. Light, and fast: 300 cells take about a second.

Hydra composes one cell in 50 ms, nearly all of which goes into the choice of groups. So each distinct choice is composed by Hydra
once, and the values that a cell sets are applied to a copy of it by Hydra's own function.
"""

import copy
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from peftrun.composition import adapter_defaults, compose
from peftrun.composition.spec import build_spec_from_values
from peftrun.config import shorthand
from peftrun.config import values as config
from peftrun.config.schema.run import RunSpec
from peftrun.errors import ConfigError

ID_LENGTH = 12
HYDRA_INTERPOLATION = "${hydra"  # what is read from Hydra's own part differs from cell to cell


@dataclass
class Cell:
    """One combination of a sweep.

    Attributes:
        numbers: its places in the sweep; several where cells are identical after resolution.
        overrides: what was typed for it.
        values: its resolved configuration, plain and nested; empty if it cannot be composed.
        spec: the run; None if it was refused.
        problems: why it was refused.
        id: what it is known by, from its resolved configuration; empty if it cannot be composed.
    """

    numbers: list[int]
    overrides: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    spec: RunSpec | None = None
    problems: tuple[str, ...] = ()
    id: str = ""


class Composer:
    """Composes cells of one command as Hydra would. `master`: the sweep's own configuration, as Hydra hands it to a launcher."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.hydra_overrides = list(master.hydra.overrides.hydra)
        self.group_exists, self.chosen = cache(self._group_exists), cache(self._chosen)

    def compose(self, overrides: Sequence[str], number: int = 0) -> dict[str, Any]:
        """Resolved values of a cell. Raises: compose.REFUSALS: Hydra cannot compose it. ConfigError: a loose interpolation."""
        parsed = [_parse_override(text) for text in overrides]
        groups = tuple(text for text, one in zip(overrides, parsed, strict=True) if self._is_group_choice(one))
        template, reads_hydra = self.chosen(groups)
        if reads_hydra or any(HYDRA_INTERPOLATION in text for text in overrides):
            return self._compose_with_hydra(overrides, number)
        cfg = copy.deepcopy(template)
        # Each override is parsed once and used for many cells: what is applied must not be changed by it.
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if not self._is_group_choice(one)], cfg)
        return adapter_defaults.apply_adapter_defaults(config.resolve_values(cfg), overrides)

    def _is_group_choice(self, override: Override) -> bool:
        return self.group_exists(override.key_or_group) and not isinstance(override.value(), dict)

    def _group_exists(self, name: str) -> bool:
        return bool(
            self.loader.get_group_options(name, None, self.master.hydra.job.config_name, overrides=self.hydra_overrides)
        )

    def _chosen(self, groups: tuple[str, ...]) -> tuple[DictConfig, bool]:
        """What Hydra composes of a choice of groups, without its own part; and whether it reads that part."""
        cfg = self.loader.load_sweep_config(self.master, list(groups))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, HYDRA_INTERPOLATION in json.dumps(OmegaConf.to_container(cfg), default=str)

    def _compose_with_hydra(self, overrides: Sequence[str], number: int) -> dict[str, Any]:
        cfg = self.loader.load_sweep_config(self.master, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        with _set_hydra_config(cfg):
            task = copy.deepcopy(cfg)
            with open_dict(task):
                del task["hydra"]
            return adapter_defaults.apply_adapter_defaults(config.resolve_values(task), overrides)


def compose_cells(
    loader: ConfigLoaderImpl, master: DictConfig, jobs: Sequence[Sequence[str]], first: int, team_dir: str | None
) -> list[Cell]:
    """The cells that the overrides of `jobs` make, each once, in their order; one that is at fault says so itself.

    Args: first: the number of the first job. team_dir: what `--config-dir` named.

    Raises: compose.REFUSALS: no cell at all can be composed.
    """
    composer, found = Composer(loader, master), dict[str, Cell]()
    explained: dict[str, tuple[str, ...]] = {}
    refusals: list[Exception] = []
    for number, overrides in enumerate(jobs, first):
        cell = Cell([number], list(overrides))
        try:
            _resolve_cell(cell, composer)
        except compose.REFUSALS as error:
            refusals.append(error)
            if len(refusals) == len(jobs):
                raise
            cell.problems = explained.setdefault(str(error), _explain_error(error, overrides, team_dir, explained))
        known = found.setdefault(cell.id or f"number {number}", cell)
        if known is not cell:
            known.numbers.append(number)
    return list(found.values())


def _explain_error(
    error: Exception, overrides: Sequence[str], team_dir: str | None, known: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    if str(error) in known:
        return known[str(error)]
    found = compose.explain_overrides(overrides, team_dir)
    if not found and isinstance(error, ValueError):
        raise error  # not Hydra's: a bug
    return tuple(found) or (str(error).splitlines()[0],)


def _resolve_cell(cell: Cell, composer: Composer) -> None:
    try:
        cell.values = composer.compose(cell.overrides, cell.numbers[0])
        cell.spec = build_spec_from_values(cell.values)
        cell.values = dataclasses.asdict(cell.spec)
    except ConfigError as error:
        cell.problems = error.lines
    cell.id = compute_cell_id(cell.values) if cell.values else ""


def compute_cell_id(values: dict[str, Any]) -> str:
    """What a resolved configuration is known by: the beginning of its SHA-256, with `action.resume` and the tracker left out."""
    action = {key: value for key, value in (values.get("action") or {}).items() if key != "resume"}
    values = {key: value for key, value in values.items() if key != "tracker"}
    text = json.dumps({**values, "action": action}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def label_cells(cells: Sequence[Cell]) -> dict[int, str]:
    """First number of each cell → what was typed for it and not for all of them."""
    shared = set.intersection(*(set(cell.overrides) for cell in cells)) if len(cells) > 1 else set()
    return {
        cell.numbers[0]: " ".join(text for text in cell.overrides if text not in shared) or "(nothing differs)"
        for cell in cells
    }


def format_command(cell: Cell, team_dir: str | None) -> str:
    """What to type to run a cell alone."""
    team = ["--config-dir", team_dir] if team_dir else []
    return shlex.join(["peftrun", *team, *map(shorthand.escape_line_ends, cell.overrides)])


@cache
def _parse_override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


@contextmanager
def _set_hydra_config(cfg: DictConfig) -> Iterator[None]:
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
