"""Compose all cells of a sweep before any of them runs. Light, and fast: 300 cells take about a second."""

import copy
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from peftrun.artifacts import hub_download
from peftrun.compat.hydra import ConfigLoaderImpl
from peftrun.composition import adapter_defaults, compose
from peftrun.composition.composer import Composer
from peftrun.config import migrations, shorthand
from peftrun.config.schema.run import RunSpec
from peftrun.config.values import flatten_keys
from peftrun.errors import AdapterError, ConfigError

ID_LENGTH = 12
# Keys that came after sweeps had been run: they are part of a cell's id only where they change what a run does.
LATER_KEYS = (
    "action.stack", "model.chat_template", "model.special_tokens", "model.new_tokens", "model.pad_vocab_to_multiple_of", "model.arguments",
    "task.objective.reference", "trainer.metric_for_best_model", "trainer.greater_is_better", "trainer.push_to_hub", "trainer.hub_model_id",
    "trainer.hub_strategy", "trainer.hub_private_repo", "trainer.arguments", "device.tf32",
)  # fmt: skip
# Key → its default today and the one before, which does the same where sweeps had been run: ids have the one before.
EARLIER_DEFAULTS = {"trainer.use_liger_kernel": (None, False)}
HYDRA_INTERPOLATION = "${hydra"  # values read from the `hydra` node differ between cells


@dataclass
class Cell:
    """One combination of a sweep.

    Attributes:
        numbers: job numbers in the sweep; several where combinations are identical after resolution.
        overrides: as typed on the command line for this cell.
        values: its resolved configuration, nested plain values; empty if it cannot be composed.
        spec: the run; None if it was refused.
        problems: why it was refused.
        id: hash of the resolved configuration; empty if it cannot be composed.
    """

    numbers: list[int]
    overrides: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    spec: RunSpec | None = None
    problems: tuple[str, ...] = ()
    id: str = ""


class CellComposer:
    """Composes the cells of one command as Hydra would. `master`: the sweep's own configuration, as Hydra passes it to a launcher."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        typed: Any = OmegaConf.to_container(master.hydra.overrides.hydra)  # as typed: ${hydra.job.num} has no value yet
        self.composer = Composer(hydra_overrides=typed, loader=loader)
        self.reads_hydra = cache(self._reads_hydra)  # by instance: the answers depend on `master`

    def compose(self, overrides: Sequence[str], number: int = 0) -> dict[str, Any]:
        """Resolved values of a cell, without what its adapter says. Raises: compose.REFUSALS: Hydra cannot compose it. ConfigError: an unresolved interpolation."""
        choices = tuple(text for text in overrides if self.composer.is_group_choice(text))
        if self.reads_hydra(choices) or any(HYDRA_INTERPOLATION in text for text in overrides):
            return self._compose_with_hydra(overrides, number)
        cfg = self.composer.compose_config(overrides)
        OmegaConf.copy_cache(self.master, cfg)  # of resolvers such as `now`, which give all cells one value
        return adapter_defaults.resolve_values(cfg, overrides)

    def _reads_hydra(self, choices: tuple[str, ...]) -> bool:
        """Whether the options that are chosen read Hydra's own part of the config."""
        values = OmegaConf.to_container(self.composer.chosen(choices))
        return HYDRA_INTERPOLATION in json.dumps(values, default=str)

    def _compose_with_hydra(self, overrides: Sequence[str], number: int) -> dict[str, Any]:
        cfg = self.loader.load_sweep_config(self.master, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        task = copy.deepcopy(cfg)
        with open_dict(task):
            del task["hydra"]
        # `${hydra:…}` is resolved from Hydra's global config, which a launched job would have set.
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)
        try:
            return adapter_defaults.resolve_values(task, overrides)
        finally:
            HydraConfig.instance().cfg = before


def compose_cells(
    loader: ConfigLoaderImpl,
    master: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: int,
    team_dir: str | None,
    *,
    downloads: bool = True,
) -> list[Cell]:
    """The distinct cells of `jobs` (overrides of each job), in order. An invalid cell has its problems in `problems`.

    Args: first: the number of the first job. team_dir: folder given by `--config-dir`. downloads: adapters on the Hub; False: those in the local cache are used.

    Raises: compose.REFUSALS: no cell at all can be composed.
    """
    composer, cells = CellComposer(loader, master), dict[str, Cell]()
    pin = cache(hub_download.pin_adapter if downloads else hub_download.pin_cached_adapter)  # each is asked for once
    explanations: dict[str, tuple[str, ...]] = {}  # by the text of the error: a bad value often fails every cell
    refusals: list[Exception] = []
    for number, overrides in enumerate(jobs, first):
        cell = Cell([number], list(overrides))
        try:
            cell.values = composer.compose(cell.overrides, number)
            cell.spec = adapter_defaults.build_pinned_spec(cell.values, cell.overrides, pin)
            cell.values = dataclasses.asdict(cell.spec)
        except (ConfigError, AdapterError) as error:
            cell.problems = error.lines
        except compose.REFUSALS as error:
            refusals.append(error)
            if len(refusals) == len(jobs):
                raise
            if str(error) not in explanations:
                problems = compose.explain_overrides(overrides, team_dir)
                if not problems and isinstance(error, ValueError):
                    raise  # not Hydra's: a bug
                explanations[str(error)] = tuple(problems) or (str(error).splitlines()[0],)
            cell.values, cell.problems = {}, explanations[str(error)]
        cell.id = compute_cell_id(cell.values) if cell.values else ""
        first_cell = cells.setdefault(cell.id or f"number {number}", cell)
        if first_cell is not cell:
            first_cell.numbers.append(number)
    return list(cells.values())


def compute_cell_id(values: dict[str, Any]) -> str:
    """Id of a resolved configuration: the first 12 digits of its SHA-256. `action.resume`, `action.upload_to` and the tracker are left out.

    Keys count under their first names, so that a sweep of an earlier version is continued.
    """
    values = _restore_defaults(_drop_later_keys(migrations.restore_keys(values)))
    action = {key: value for key, value in (values.get("action") or {}).items() if key not in ("resume", "upload_to")}
    values = {key: value for key, value in values.items() if key != "tracker"}
    text = json.dumps({**values, "action": action}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _drop_later_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The values without those of LATER_KEYS that mean what runs did before the keys existed."""
    flat = flatten_keys(values)
    for key in LATER_KEYS:
        *owners, last = key.split(".")
        if key in flat and flat[key] == migrations.get_earlier_default(key, flat):
            owner = values
            for name in owners:
                owner = owner[name]
            del owner[last]
    return values


def _restore_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The values with defaults of before in place of those that replaced them."""
    for key, (today, before) in EARLIER_DEFAULTS.items():
        group, _, name = key.partition(".")
        if name in (values.get(group) or {}) and values[group][name] is today:
            values[group][name] = before
    return values


def label_cells(cells: Sequence[Cell]) -> dict[int, str]:
    """First number of each cell → the overrides that not all cells share."""
    shared = set.intersection(*(set(cell.overrides) for cell in cells)) if len(cells) > 1 else set()
    return {
        cell.numbers[0]: " ".join(text for text in cell.overrides if text not in shared) or "(nothing differs)"
        for cell in cells
    }


def format_command(cell: Cell, team_dir: str | None) -> str:
    """The command that runs a cell alone."""
    team = ["--config-dir", team_dir] if team_dir else []
    return shlex.join(["peftrun", *team, *map(shorthand.escape_line_ends, cell.overrides)])
