"""Hydra launchers `shared_base`, `shared_base_slurm` and `shared_base_ray`: they differ in where groups of cells run. Light.

Without a launcher on the command line (Hydra's `basic`), cells train one after another and the sweep ends the same way: a table, a
report, and finished cells are skipped when the command is typed again.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftrun.compat.hydra import BasicLauncher, create_job_return, register_plugin
from peftrun.errors import PeftrunError

_ERRORS: list[PeftrunError] = []


class SharedBase(Launcher):
    """Plans all cells of a sweep, then trains cells that share a base model together.

    Attributes:
        engine: module whose `send` runs groups elsewhere; None: they run in this process.
        together: whether any cells are trained together.
    """

    engine: str | None = None
    together = True

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before any cell is known. Raises: ConfigError: a launcher option is invalid."""
        # Imported here: the launchers are registered for every command, also for one without a sweep.
        from peftrun.sweep.run_sweep import SharedBaseSweep

        options = OmegaConf.to_container(OmegaConf.create(self.options), resolve=True)
        self.sweep = SharedBaseSweep(hydra_context, config, dict(options), self.engine, together=self.together)  # type: ignore[arg-type]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra with a batch of cells. Returns one result per cell, in order: its objective, or None if it failed."""
        from peftrun import console

        with console.print_heartbeats():
            objectives, error = self.sweep.run(job_overrides, initial_job_idx)
        if error:
            _ERRORS.append(error)
        # COMPLETED even for a failed cell: any other status makes Hydra raise when it reads the value, which would end a search.
        return [*map(create_job_return, job_overrides, objectives)]


class SharedBaseSlurm(SharedBase):
    """`shared_base` on a SLURM cluster."""

    engine = "peftrun.sweep.slurm"


class SharedBaseRay(SharedBase):
    """`shared_base` on a Ray cluster."""

    engine = "peftrun.sweep.ray"


class OneByOne(SharedBase):
    """Replaces Hydra's `basic`: cells run one after another. Actions without an objective run on Hydra's own launcher."""

    together = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before any cell is known."""
        self.basic: BasicLauncher | None = None
        if config.action.name in MEASURING:
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
            return
        self.basic = BasicLauncher()
        self.basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra with a batch of cells. Returns one result per cell, in order."""
        return (self.basic.launch if self.basic else super().launch)(job_overrides, initial_job_idx)


LAUNCHERS = {"shared_base": SharedBase, "shared_base_slurm": SharedBaseSlurm, "shared_base_ray": SharedBaseRay}
REPLACED_LAUNCHERS = {"basic": OneByOne}
MEASURING = ("train", "evaluate")  # actions that return an objective, by which cells are compared


def register_launchers() -> None:
    """Register the launchers with Hydra. `conf/hydra/launcher/NAME.yaml` holds the options and refers to the class as NAME_class."""
    options = {f"{name}_class": launcher for name, launcher in LAUNCHERS.items()} | REPLACED_LAUNCHERS
    for option, launcher in options.items():
        node = {"_target_": register_plugin(launcher)}
        ConfigStore.instance().store(group="hydra/launcher", name=option, node=node, provider="peftrun")
    if find_spec("peftrun.sweep.optuna_sweeper"):
        import_module("peftrun.sweep.optuna_sweeper").register()


def use_shared_base(argv: Sequence[str]) -> list[str]:
    """The command line with `hydra/launcher=shared_base` in place of any launcher that is not one of the shared_base family."""
    if any(text.startswith("hydra/launcher=shared_base") for text in argv):
        return list(argv)
    # Options of another launcher would not compose with this one.
    others = [text for text in argv if not text.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    return [*others, "hydra/launcher=shared_base"]


def take_errors() -> list[PeftrunError]:
    """Errors of the sweeps since the last call. A failed cell stops neither the other cells nor a search."""
    errors = list(_ERRORS)
    _ERRORS.clear()
    return errors
