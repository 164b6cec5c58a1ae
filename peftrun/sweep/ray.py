"""Groups of a sweep as Ray tasks. Light: ray is imported when groups are sent."""

import io
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from peftrun.errors import ConfigError, DeviceError
from peftrun.sweep import cluster
from peftrun.sweep.cluster import JobEnd
from peftrun.system import packages

CONNECT_TIMEOUT = 10.0  # seconds
QUIET = {"logging_level": "error", "log_to_driver": False}
# A cluster that is started here: no dashboard, and no more room for objects than Ray insists on (a task carries names of folders).
LOCAL_CLUSTER = {"include_dashboard": False, "object_store_memory": 80_000_000}


def send(groups: Sequence[Sequence[Path]], options: dict[str, Any]) -> None:
    """Returns when every group has ended on the Ray cluster; see `cluster.run_on_cluster`.

    Args: options: `address`, `init`, which goes to `ray.init` whole, `num_cpus` and `num_gpus` of a group, `parallel`, `max_retries`.

    Raises: ConfigError: ray is not installed, or refuses an option. DeviceError: no cluster at the address, or it will
        never have what a group asks for.
    """
    if packages.find_package_dir("ray") is None:
        raise ConfigError(packages.explain_not_installed("hydra/launcher", "ray"))
    parallel = cluster.read_int_option(options, "Ray", "parallel", 1)
    max_retries = cluster.read_int_option(options, "Ray", "max_retries", 0) or 0
    with _connect_cluster(options) as ray:
        wanted = _choose_resources(options, ray.cluster_resources(), min(parallel or len(groups), len(groups)))
        task = ray.remote(**wanted, max_retries=0)(cluster.run_group)
        stop = partial(ray.cancel, force=False)
        engine = cluster.ClusterBackend(
            "Ray", partial(_submit_group, task, wanted["num_cpus"]), partial(_read_end, ray), stop
        )
        cluster.run_on_cluster(groups, engine, parallel, max_retries)


@contextmanager
def _connect_cluster(options: dict[str, Any]) -> Iterator[Any]:
    """Ray, with a cluster of its own or joined to the one at `address`; left again at the end."""
    address, init = options.get("address"), dict(options.get("init") or {})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        init = LOCAL_CLUSTER | init
        if (
            "RAY_AUTH_MODE" not in os.environ
        ):  # a token of its own for this cluster, where Ray would write one into the home folder
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    settings: dict[str, Any] = QUIET | init
    try:
        _check_address(address)
        ray.init(address or "local", **settings)
    except (OSError, TimeoutError) as error:  # a ConnectionError is an OSError
        advice = "start Ray there (ray start --head), or type hydra.launcher.address=null"
        raise DeviceError(f"hydra.launcher.address={address}: {_get_first_line(error)}; {advice}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"hydra.launcher.init: Ray refuses it: {_get_first_line(error)}") from error
    try:
        with (
            nullcontext() if settings["log_to_driver"] else redirect_stdout(io.StringIO())
        ):  # Ray tells each death there
            yield ray
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raises: OSError: nobody listens at HOST:PORT. Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").partition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()


def _get_first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _choose_resources(options: dict[str, Any], there: dict[str, float], groups: int) -> dict[str, float]:
    """What each of so many groups at once asks for. Unless it is said: a GPU if there are any, and of the processors of a
    cluster of our own an equal part."""
    own = options.get("address") is None
    cpus, gpus = there.get("CPU", 1), there.get("GPU", 0)
    fair = {"num_cpus": max(1, cpus // groups) if own else 1, "num_gpus": min(1, gpus)}
    wanted = {key: fair[key] if options.get(key) is None else options[key] for key in fair}
    for key, most in (("num_cpus", cpus), ("num_gpus", gpus)):
        if own and wanted[key] > most:  # another cluster may grow
            raise DeviceError(
                f"hydra.launcher.{key}={wanted[key]}: this machine has {most:g}; type hydra.launcher.{key}={most:g}"
            )
    return wanted


def _submit_group(task: Any, cpus: float, folders: Sequence[Path]) -> Any:
    return task.remote([str(one) for one in folders], os.getcwd(), max(1, int(cpus)))


def _read_end(ray: Any, handle: Any) -> JobEnd | None:
    if not ray.wait([handle], timeout=0)[0]:
        return None
    try:
        return JobEnd(fault=ray.get(handle))
    except ray.exceptions.RayError as error:  # the worker or its machine is gone, or the task raised
        return JobEnd(died=f"{type(error).__name__}: {_get_first_line(error)}")
