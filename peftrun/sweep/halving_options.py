"""Check the launcher's option `halving` (successive halving). Light; the algorithm is in `training.joint.successive_halving`."""

from peftrun.errors import ConfigError

LEAST = {
    "min_steps": 1,
    "factor": 2,
}  # smallest values: optimizer steps before the first comparison; one cell in `factor` goes on
EXAMPLE = "'hydra.launcher.halving={min_steps: 20, factor: 3}'"


def read_halving(value: object, engine: str | None) -> dict[str, int] | None:
    """`min_steps` and `factor`; None if no cell is stopped early.

    Raises: ConfigError: the option holds anything else, or the cells run on a cluster, where a worker sees only its own cells.
    """
    if value is None:
        return None
    if engine:
        raise ConfigError(
            f"hydra.launcher.halving={value}: compares cells of one process; type hydra/launcher=shared_base, or hydra.launcher.halving=null"
        )
    if not isinstance(value, dict) or value.keys() != LEAST.keys():
        raise ConfigError(f"hydra.launcher.halving={value}: must hold min_steps and factor; type {EXAMPLE}")
    for key, least in LEAST.items():
        number = value[key]
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ConfigError(
                f"hydra.launcher.halving.{key}={number}: must be a whole number of at least {least}; type {EXAMPLE}"
            )
    return value
