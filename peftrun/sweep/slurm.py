"""Groups of a sweep as SLURM jobs, or as processes of this machine, through submitit. Light: submitit is imported when groups are sent."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from peftrun import console
from peftrun.errors import ConfigError
from peftrun.sweep import cluster
from peftrun.sweep.cluster import JobEnd
from peftrun.system import packages

LOGS = ".submitit"  # in the sweep's folder: submitit's pickles and what its jobs print
CLUSTERS = ("slurm", "local", "debug")


class Job:
    """One group, as submitit pickles it. A job that SLURM ends at its time limit, or preempts, is put back into the queue."""

    def __init__(self, folders: Sequence[str], where: str, threads: int | None) -> None:
        self.folders, self.where, self.threads = folders, where, threads

    def __call__(self) -> str:
        """Runs the group; one line if the machine cannot do that, else nothing."""
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        return cluster.run_group(self.folders, self.where, int(cpus) if cpus else self.threads)

    def checkpoint(self, *_: Any) -> Any:
        """What is put back into the queue: the same group; cells that are done are skipped there, partial ones resumed."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.folders, self.where, self.threads))


def send(groups: Sequence[Sequence[Path]], options: dict[str, Any]) -> None:
    """Returns when every group has ended, here or on the cluster; see `cluster.run_on_cluster`.

    Args: options: `cluster`, `parallel`, `max_retries`, and `executor`, which goes to submitit whole.

    Raises: ConfigError: submitit is not installed, there is no such cluster, or submitit refuses an option.
    """
    if packages.find_package_dir("submitit") is None:
        raise ConfigError(packages.explain_not_installed("hydra/launcher", "submitit"))
    parallel = cluster.read_int_option(options, "SLURM", "parallel", 1)
    max_retries = cluster.read_int_option(options, "SLURM", "max_retries", 0) or 0
    logs = groups[0][0].absolute().parent / LOGS
    executor = _build_executor(logs, options, max_retries)
    _stop_earlier(logs, options["cluster"])
    threads = None if options["cluster"] == "slurm" else cluster.count_threads(parallel, len(groups))
    start = partial(_submit_group, executor, threads)
    cluster.run_on_cluster(
        groups,
        cluster.ClusterBackend(_format_name(options), start, _read_end, partial(_stop_job, logs, options["cluster"])),
        parallel,
        max_retries,
    )


def _format_name(options: dict[str, Any]) -> str:
    return "SLURM" if options["cluster"] == "slurm" else f"submitit ({options['cluster']})"


def _build_executor(logs: Path, options: dict[str, Any], max_retries: int) -> Any:
    cluster = options.get("cluster")
    if cluster not in CLUSTERS:
        raise ConfigError(
            f"hydra.launcher.cluster={cluster}: must be one of {', '.join(CLUSTERS)}; type hydra.launcher.cluster=slurm"
        )
    import submitit

    try:
        executor = submitit.AutoExecutor(logs / "%j", cluster=cluster, slurm_max_num_timeout=max_retries)
        executor.update_parameters(**options.get("executor") or {})
    except (RuntimeError, NameError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(_explain_refusal(cluster, error)) from error
    return executor


def _explain_refusal(cluster: str, error: Exception) -> str:
    first = str(error).splitlines()[0]
    if isinstance(error, RuntimeError):  # no srun on this machine
        return f"hydra.launcher.cluster={cluster}: {first}; on one machine type hydra.launcher.cluster=local"
    return f"hydra.launcher.executor: submitit refuses it: {first}"


def _submit_group(executor: Any, threads: int | None, folders: Sequence[Path]) -> Any:
    import submitit

    try:
        with _ignore_interrupts():
            job = executor.submit(Job([str(one) for one in folders], os.getcwd(), threads))
    except (submitit.core.utils.FailedJobError, OSError) as error:  # sbatch says no
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ConfigError(f"hydra.launcher.executor: SLURM refuses the job: {last.strip()}") from error
    if executor.cluster != "slurm":
        job._results_timeout_s = 1  # on one machine, what a dead job has not written is not on its way
    return job


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C, which a terminal sends to all: this process ends them, in order."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _read_end(job: Any) -> JobEnd | None:
    if not job.done():
        return None
    error = job.exception()
    return JobEnd(fault=job.result()) if error is None else JobEnd(died=_format_death(job, error))


def _format_death(job: Any, error: BaseException) -> str:
    """The last line that the job printed, where it lies, and what submitit says of it."""
    log = Path(job.paths.stderr)
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    said = f"; the last line of {log}: {lines[-1].strip()[:200]}" if lines else f"; {log} says nothing"
    return f"{type(error).__name__}: job {job.job_id} is {job.state}{said}"


def _stop_job(logs: Path, cluster: str, job: Any) -> None:
    if cluster != "local":
        job.cancel(check=False)
    elif end := _find_local_job(logs, job.job_id):
        end()


def _stop_earlier(logs: Path, cluster: str) -> None:
    """Jobs of a launch that was killed may still run: they end before their cells are sent again."""
    begun = [one.name for one in logs.glob("*") if one.name.isdigit() and not list(one.glob("*_result.pkl"))]
    alive = [
        end
        for job in begun
        if (end := (_find_slurm_job if cluster == "slurm" else _find_local_job)(logs, job)) is not None
    ]
    if alive:
        jobs = (
            "1 job of an earlier launch still runs"
            if len(alive) == 1
            else f"{len(alive)} jobs of an earlier launch still run"
        )
        console.print_info(f"{jobs}; ended now, their cells are continued")
    for end in alive:
        end()


def _find_slurm_job(logs: Path, number: str) -> Callable[[], Any] | None:
    """What ends a job of SLURM; None if it has ended."""
    from submitit.slurm.slurm import SlurmJob

    job: Any = SlurmJob(logs / "%j", number)
    if job.done(force_check=True):
        return None
    return lambda: (job.cancel(check=False), job.wait())


def _find_local_job(logs: Path, number: str) -> Callable[[], Any] | None:
    """What ends a job of submitit on this machine; None if it has ended, or the number is another process's by now."""
    import psutil

    try:
        found = psutil.Process(int(number))
        if str(logs) not in " ".join(found.cmdline()):
            return None
        family = [found, *found.children(recursive=True)]
    except psutil.Error:
        return None
    return lambda: _terminate_processes(family)


def _terminate_processes(family: Sequence[Any]) -> None:
    import psutil

    family[0].terminate()  # submitit hands it on
    for one in psutil.wait_procs(family, timeout=cluster.STOPPING)[1]:
        with suppress(psutil.Error):
            one.kill()
