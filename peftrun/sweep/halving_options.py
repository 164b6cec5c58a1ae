"""The launcher's option `halving`, checked. Light; the halving itself: `training.halving`."""

from peftrun.errors import ConfigError

LEAST = {"min_steps": 1, "factor": 2}
EXAMPLE = "'hydra.launcher.halving={min_steps: 20, factor: 3}'"


def read_halving(value: object, engine: str | None) -> dict[str, int] | None:
    """`min_steps` and `factor`; None where all cells run to their ends.

    Raises: ConfigError: the option holds something else, or the cells are sent to a cluster, whose workers know only their own.
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
        found = value[key]
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            raise ConfigError(
                f"hydra.launcher.halving.{key}={found}: must be a whole number of at least {least}; type {EXAMPLE}"
            )
    return value
