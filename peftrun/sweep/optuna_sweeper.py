"""The search `hydra/sweeper=optuna`: the sweeper of hydra-optuna-sweeper with defaults that suit runs of ours. Light.

Each batch of `n_jobs` trials goes to the launcher at once; with `shared_base` it is trained together on one base. The sampler has a
seed, so the same command proposes the same trials again: those that are done are read from their records, and the search goes on
from there. A trial that failed is told to Optuna as failed, and the others go on.
"""

import logging
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftrun.errors import ConfigError
from peftrun.system import packages

ALIAS = "hydra_plugins.peftrun_search"  # Hydra takes plugins from this package alone
PACKAGE = "hydra_optuna_sweeper"
RESULTS = "optimization_results.yaml"  # the sweeper's own file, in the sweep's folder
SEEDED = ("tpe", "random", "cmaes", "nsgaii", "motpe")
DEFAULTS = {"n_jobs": 4, "max_failure_rate": 1.0}  # theirs: 2 at once, and the first failure ends the search
# What stands in for their options where the package is not there, so that a command that sets them is read and answered.
OPTIONS = {
    "sampler": {"seed": 0},
    "direction": "minimize",
    "n_trials": 20,
    **dict.fromkeys(("storage", "study_name", "search_space", "custom_search_space", "params")),
}


class Search(Sweeper):
    """Hydra's sweeper `optuna`; the search itself is hydra-optuna-sweeper's."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once. Raises: ConfigError: the package is not there, or an option is at fault."""
        if not _is_installed():
            raise ConfigError(packages.explain_not_installed("hydra/sweeper=optuna", PACKAGE))
        for key in ("n_trials", "n_jobs"):
            if self.options[key] < 1:
                raise ConfigError(
                    f"hydra.sweeper.{key}={self.options[key]}: must be at least 1; type hydra.sweeper.{key}=4"
                )
        import optuna
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A trial that failed is told by its launcher.
        logging.getLogger(f"hydra_plugins.{PACKAGE}").setLevel(logging.CRITICAL)
        self.master, self.theirs = config, OptunaSweeper(**self.options)
        self.theirs.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Runs the search; what was best is shown, and lies in the sweep's folder."""
        try:
            self.theirs.sweep(arguments)
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            return  # each trial has told its fault
        _show_best(Path(str(self.master.hydra.sweep.dir)) / RESULTS)


def _is_installed() -> bool:
    with suppress(ImportError):
        return find_spec(f"hydra_plugins.{PACKAGE}") is not None
    return False


def _show_best(results: Path) -> None:
    from peftrun import console

    found = OmegaConf.to_container(OmegaConf.load(results))
    if isinstance(found, dict) and "best_params" in found:
        values = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
        console.print_result(
            f"best of the search: {values} ({found['best_value']:.6g}); {console.shorten_path(results.absolute())}"
        )


def register() -> None:
    """Makes the search known to Hydra, beside the launchers."""
    Search.__module__ = ALIAS
    sys.modules[ALIAS] = module = ModuleType(ALIAS)
    setattr(module, Search.__name__, Search)
    Plugins.instance().register(Search)
    _store_options("hydra/sweeper", "optuna", DEFAULTS | {"_target_": f"{ALIAS}.{Search.__name__}"}, OPTIONS)
    for name in SEEDED if _is_installed() else ():
        _store_options("hydra/sweeper/sampler", name, {"seed": 0}, {})


def _store_options(group: str, name: str, ours: dict[str, Any], otherwise: dict[str, Any]) -> None:
    """Their options with ours on top; `otherwise` where theirs are not there."""
    store = ConfigStore.instance()
    theirs = store.load(f"{group}/{name}.yaml").node if _is_installed() else OmegaConf.create(otherwise)
    store.store(group=group, name=name, node=OmegaConf.merge(theirs, ours), provider="peftrun")
