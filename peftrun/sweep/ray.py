"""Run groups of a sweep as Ray tasks. Light: ray is imported when groups are sent."""

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
# For a cluster started here: no dashboard, and the smallest object store that Ray accepts, in bytes (a task carries only folder names).
LOCAL_CLUSTER = {"include_dashboard": False, "object_store_memory": 80_000_000}


def send(groups: Sequence[Sequence[Path]], options: dict[str, Any]) -> None:
    """Run all groups on the Ray cluster and return when they have ended; see `cluster.run_on_cluster`.

    Args: options: `address`, `init` (passed whole to `ray.init`), `num_cpus` and `num_gpus` of a group, `parallel`, `max_retries`.

    Raises: ConfigError: ray is not installed, or refuses an option. DeviceError: no cluster at the address, or it has not
        what a group asks for.
    """
    if packages.find_package_dir("ray") is None:
        raise ConfigError(packages.explain_not_installed("hydra/launcher", "ray"))
    parallel = cluster.read_int_option(options, "Ray", "parallel", 1)
    max_retries = cluster.read_int_option(options, "Ray", "max_retries", 0) or 0
    with _connect_cluster(options) as ray:
        resources = _choose_resources(options, ray.cluster_resources(), min(parallel or len(groups), len(groups)))
        threads = max(1, int(resources["num_cpus"]))
        # Ray's own retries are off: `run_on_cluster` counts them, and sends only the cells that are not done.
        task = ray.remote(**resources, max_retries=0)(cluster.run_group)
        engine = cluster.ClusterBackend(
            "Ray",
            start=lambda folders: task.remote([str(folder) for folder in folders], os.getcwd(), threads),
            end=partial(_read_end, ray),
            stop=partial(ray.cancel, force=False),
        )
        cluster.run_on_cluster(groups, engine, parallel, max_retries)


@contextmanager
def _connect_cluster(options: dict[str, Any]) -> Iterator[Any]:
    """The ray module, connected to the cluster at `address` or to one started here; disconnected at the end."""
    address, init = options.get("address"), dict(options.get("init") or {})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        init = LOCAL_CLUSTER | init
        # Without a token in the environment Ray would write one into the home folder.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    settings: dict[str, Any] = QUIET | init
    try:
        host, _, port = (address or "").removeprefix("ray://").partition(":")
        if port.isdigit():  # a quick check that something listens: ray.init would retry for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
        ray.init(address or "local", **settings)
    except (OSError, TimeoutError) as error:  # a ConnectionError is an OSError
        advice = "start Ray there (ray start --head), or type hydra.launcher.address=null"
        raise DeviceError(f"hydra.launcher.address={address}: {_get_first_line(error)}; {advice}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"hydra.launcher.init: Ray refuses it: {_get_first_line(error)}") from error
    try:
        # Ray prints the death of each worker to stdout.
        with nullcontext() if settings["log_to_driver"] else redirect_stdout(io.StringIO()):
            yield ray
    finally:
        ray.shutdown()


def _get_first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _choose_resources(options: dict[str, Any], available: dict[str, float], groups: int) -> dict[str, float]:
    """num_cpus and num_gpus of each of `groups` concurrent groups.

    Defaults: one GPU if there are any; of a cluster started here an equal share of the CPUs, else one.
    """
    is_local = options.get("address") is None
    cpus, gpus = available.get("CPU", 1), available.get("GPU", 0)
    defaults = {"num_cpus": max(1, cpus // groups) if is_local else 1, "num_gpus": min(1, gpus)}
    resources = {key: value if options.get(key) is None else options[key] for key, value in defaults.items()}
    for key, most in (("num_cpus", cpus), ("num_gpus", gpus)):
        if is_local and resources[key] > most:  # another cluster may autoscale
            raise DeviceError(
                f"hydra.launcher.{key}={resources[key]}: this machine has {most:g}; type hydra.launcher.{key}={most:g}"
            )
    return resources


def _read_end(ray: Any, handle: Any) -> JobEnd | None:
    if not ray.wait([handle], timeout=0)[0]:
        return None
    try:
        return JobEnd(fault=ray.get(handle))
    except ray.exceptions.RayError as error:  # the worker or its machine is gone, or the task raised
        return JobEnd(died=f"{type(error).__name__}: {_get_first_line(error)}")
