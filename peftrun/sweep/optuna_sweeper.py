"""The sweeper `hydra/sweeper=optuna`: that of hydra-optuna-sweeper with other defaults. Light.

Each batch of `n_jobs` trials goes to the launcher at once; with `shared_base` it is trained together on one base model. The sampler has
a seed, so the same command proposes the same trials again: finished ones are read from their records, and the search goes on from
there. A failed trial is reported to Optuna as failed, and the others go on.
"""

import logging
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftrun.compat.hydra import register_plugin
from peftrun.errors import ConfigError
from peftrun.system import packages

PACKAGE = "hydra_optuna_sweeper"
PROVIDER = "peftrun"  # Hydra's name for the origin of these options
RESULTS = "optimization_results.yaml"  # the sweeper's own file, in the sweep's folder
SEEDED = ("tpe", "random", "cmaes", "nsgaii", "motpe")
DEFAULTS = {"n_jobs": 4, "max_failure_rate": 1.0}  # upstream: 2 at once, and the first failure ends the search
# Options of the sweeper where the package is missing, so that a command that sets them composes and gets the message below.
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
        """Called by Hydra once. Raises: ConfigError: the package is not installed, or an option is invalid."""
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
        # The launcher already reports a failed trial.
        logging.getLogger(f"hydra_plugins.{PACKAGE}").setLevel(logging.CRITICAL)
        self.master, self.sweeper = config, OptunaSweeper(**self.options)
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the search and print the best values, which are also in `optimization_results.yaml` in the sweep's folder."""
        try:
            self.sweeper.sweep(arguments)
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            return  # every trial failed, and its error is reported
        from peftrun import console

        path = Path(str(self.master.hydra.sweep.dir)) / RESULTS
        results = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(results, dict) and "best_params" in results:
            values = " ".join(f"{key}={value}" for key, value in results["best_params"].items())
            console.print_result(
                f"best of the search: {values} ({results['best_value']:.6g}); {console.shorten_path(path.absolute())}"
            )


def _is_installed() -> bool:
    with suppress(ImportError):
        return find_spec(f"hydra_plugins.{PACKAGE}") is not None
    return False


def register() -> None:
    """Register the sweeper and its samplers with Hydra."""
    target, store, is_installed = register_plugin(Search), ConfigStore.instance(), _is_installed()
    if "optuna.yaml" in store.list("hydra/sweeper") and store.load("hydra/sweeper/optuna.yaml").provider == PROVIDER:
        return  # by an earlier run of this process
    _store_options("hydra/sweeper", "optuna", DEFAULTS | {"_target_": target}, OPTIONS, is_installed)
    for name in SEEDED if is_installed else ():
        _store_options("hydra/sweeper/sampler", name, {"seed": 0}, {}, is_installed)


def _store_options(
    group: str, name: str, defaults: dict[str, Any], fallback: dict[str, Any], is_installed: bool
) -> None:
    """Store upstream's options (`fallback` if it is not installed), overridden by `defaults`."""
    store = ConfigStore.instance()
    options = store.load(f"{group}/{name}.yaml").node if is_installed else OmegaConf.create(fallback)
    store.store(group=group, name=name, node=OmegaConf.merge(options, defaults), provider=PROVIDER)
