"""Hydra's launchers `shared_base`, `shared_base_slurm` and `shared_base_ray`: they differ in who runs the groups. Light.

Where no launcher is typed (Hydra's `basic`), cells are trained one after another and end the same way: a table, a report, and what is done
is skipped when the command is typed again. Hydra takes plugins from the package `hydra_plugins` alone. These are not there: they are registered in code, under that name.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftrun.errors import PeftrunError

ALIAS = "hydra_plugins.peftrun_sweep"
_ERRORS: list[PeftrunError] = []


class SharedBase(Launcher):
    """Plans all cells of a sweep first, then trains those together that share a base.

    Attributes:
        engine: the module that runs groups elsewhere.
        together: whether any cells are trained together.
    """

    engine: str | None = None
    together = True

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before any cell is known. Raises: ConfigError: an option of the launcher is at fault."""
        from peftrun.sweep.run_sweep import SharedBaseSweep

        options = OmegaConf.to_container(OmegaConf.create(self.options), resolve=True)
        self.flow = SharedBaseSweep(hydra_context, config, dict(options), self.engine, together=self.together)  # type: ignore[arg-type]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra with a batch of cells. One outcome each, in order: its objective, or None if it failed."""
        from peftrun import console

        with console.print_heartbeats():
            objectives, fault = self.flow.run(job_overrides, initial_job_idx)
        if fault:
            _ERRORS.append(fault)
        return [_build_job_return(list(job), value) for job, value in zip(job_overrides, objectives, strict=True)]


class SharedBaseSlurm(SharedBase):
    """The same on a SLURM cluster."""

    engine = "peftrun.sweep.slurm"


class SharedBaseRay(SharedBase):
    """The same on a Ray cluster."""

    engine = "peftrun.sweep.ray"


class OneByOne(SharedBase):
    """In the place of Hydra's own: the same, one cell after another. Actions that measure nothing are run as Hydra runs them."""

    together = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before any cell is known."""
        self.plain: BasicLauncher | None = None
        if config.action.name in MEASURING:
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
            return
        self.plain = BasicLauncher()
        self.plain.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra with a batch of cells. One outcome each, in order."""
        if self.plain is None:
            return super().launch(job_overrides, initial_job_idx)
        return self.plain.launch(job_overrides, initial_job_idx)


LAUNCHERS = {"shared_base": SharedBase, "shared_base_slurm": SharedBaseSlurm, "shared_base_ray": SharedBaseRay}
IN_PLACE_OF_HYDRAS = {"basic": OneByOne}
MEASURING = ("train", "evaluate")  # actions whose cells are compared by what came out


def register_launchers() -> None:
    """Makes the launchers known to Hydra; `conf/hydra/launcher/NAME.yaml` holds the options and takes the class by the name NAME_class."""
    plugins, module = Plugins.instance(), ModuleType(ALIAS)
    parent, _, own = ALIAS.partition(".")
    try:
        package = import_module(parent)  # other plugins are installed
    except ImportError:
        package = sys.modules[parent] = ModuleType(parent)
        package.__path__ = []
    sys.modules[ALIAS] = module
    setattr(package, own, module)
    options = {f"{name}_class": kind for name, kind in LAUNCHERS.items()} | IN_PLACE_OF_HYDRAS
    for option, kind in options.items():
        kind.__module__ = ALIAS
        setattr(module, kind.__name__, kind)
        plugins.register(kind)
        node = {"_target_": f"{ALIAS}.{kind.__name__}"}
        ConfigStore.instance().store(group="hydra/launcher", name=option, node=node, provider="peftrun")
    if find_spec("peftrun.sweep.optuna_sweeper"):
        import_module("peftrun.sweep.optuna_sweeper").register()


def use_shared_base(argv: Sequence[str]) -> list[str]:
    """A command line with `shared_base`, or the launcher like it that it names, in the place of any other."""
    if any(text.startswith("hydra/launcher=shared_base") for text in argv):
        return list(argv)
    kept = [text for text in argv if not text.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    return [*kept, "hydra/launcher=shared_base"]


def take_errors() -> list[PeftrunError]:
    """What was at fault in the sweeps since this was last asked. A faulty cell stops neither the others nor the search."""
    found = list(_ERRORS)
    _ERRORS.clear()
    return found


def _build_job_return(overrides: list[str], value: float | None) -> JobReturn:
    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=value)
