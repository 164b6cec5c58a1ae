"""Run groups of a sweep as SLURM jobs, or as processes of this machine, through submitit. Light: submitit is imported when groups are sent."""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peftrun.compat.submitit import expect_results_at_once
from peftrun.errors import ConfigError
from peftrun.sweep import cluster
from peftrun.sweep.cluster import JobEnd
from peftrun.system import packages

LOGS = ".submitit"  # in the sweep's folder: submitit's pickles and the output of its jobs
CLUSTERS = ("slurm", "local", "debug")


class Job:
    """One group, as submitit pickles it. A job that SLURM ends at its time limit, or preempts, is queued again."""

    def __init__(self, folders: Sequence[str], where: str, threads: int | None) -> None:
        self.folders, self.where, self.threads = folders, where, threads

    def __call__(self) -> str:
        """Run the group. Returns one line if the machine cannot do that, else an empty string."""
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        return cluster.run_group(self.folders, self.where, int(cpus) if cpus else self.threads)

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit before a job is queued again: the same group. Finished cells are skipped there, others resumed."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.folders, self.where, self.threads))


def send(groups: Sequence[Sequence[Path]], options: dict[str, Any]) -> None:
    """Run all groups, here or on the cluster, and return when they have ended; see `cluster.run_on_cluster`.

    Args: options: `cluster`, `parallel`, `max_retries`, and `executor`, which is passed whole to submitit.

    Raises: ConfigError: submitit is not installed, there is no such cluster, or submitit refuses an option.
    """
    if packages.find_package_dir("submitit") is None:
        raise ConfigError(packages.explain_not_installed("hydra/launcher", "submitit"))
    parallel = cluster.read_int_option(options, "SLURM", "parallel", 1)
    max_retries = cluster.read_int_option(options, "SLURM", "max_retries", 0) or 0
    logs, cluster_name = groups[0][0].absolute().parent / LOGS, options["cluster"]
    executor = _build_executor(logs, options, max_retries)
    _stop_earlier_jobs(logs, cluster_name)
    # On SLURM each job has its own CPUs; local jobs share those of this machine.
    threads = None if cluster_name == "slurm" else cluster.count_threads(parallel, len(groups))

    def stop(job: Any) -> None:
        if cluster_name != "local":
            job.cancel(check=False)
        elif stop_processes := _find_local_job(logs, job.job_id):  # with all its child processes
            stop_processes()

    engine = cluster.ClusterBackend(
        "SLURM" if cluster_name == "slurm" else f"submitit ({cluster_name})",
        start=partial(_submit_group, executor, threads),
        end=_read_end,
        stop=stop,
    )
    cluster.run_on_cluster(groups, engine, parallel, max_retries)


def _build_executor(logs: Path, options: dict[str, Any], max_retries: int) -> Any:
    cluster_name = options.get("cluster")
    if cluster_name not in CLUSTERS:
        raise ConfigError(
            f"hydra.launcher.cluster={cluster_name}: must be one of {', '.join(CLUSTERS)}; type hydra.launcher.cluster=slurm"
        )
    import submitit

    try:
        executor = submitit.AutoExecutor(logs / "%j", cluster=cluster_name, slurm_max_num_timeout=max_retries)
        executor.update_parameters(**options.get("executor") or {})
    except (RuntimeError, NameError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        message = f"hydra.launcher.executor: submitit refuses it: {reason}"
        if isinstance(error, RuntimeError):  # no srun on this machine
            message = (
                f"hydra.launcher.cluster={cluster_name}: {reason}; on one machine type hydra.launcher.cluster=local"
            )
        raise ConfigError(message) from error
    return executor


def _submit_group(executor: Any, threads: int | None, folders: Sequence[Path]) -> Any:
    import submitit

    # The job's processes ignore Ctrl-C, which a terminal sends to all of them: this process ends them in order.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = executor.submit(Job([str(folder) for folder in folders], os.getcwd(), threads))
    except (submitit.core.utils.FailedJobError, OSError) as error:  # sbatch refuses the job
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ConfigError(f"hydra.launcher.executor: SLURM refuses the job: {reason.strip()}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    if executor.cluster != "slurm":
        expect_results_at_once(job)
    return job


def _read_end(job: Any) -> JobEnd | None:
    if not job.done():
        return None
    error = job.exception()
    if error is None:
        return JobEnd(fault=job.result())
    log = Path(job.paths.stderr)
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    last = f"; the last line of {log}: {lines[-1].strip()[:200]}" if lines else f"; {log} is empty"
    return JobEnd(died=f"{type(error).__name__}: job {job.job_id} is {job.state}{last}")


def _stop_earlier_jobs(logs: Path, cluster_name: str) -> None:
    """Stop jobs of a killed launch that still run, before their cells are sent again."""
    find = _find_slurm_job if cluster_name == "slurm" else _find_local_job
    numbers = [path.name for path in logs.glob("*") if path.name.isdigit() and not list(path.glob("*_result.pkl"))]
    stops = [stop for number in numbers if (stop := find(logs, number)) is not None]
    if stops:
        cluster.report_earlier_jobs(len(stops))
    for stop in stops:
        stop()


def _find_slurm_job(logs: Path, number: str) -> Callable[[], Any] | None:
    """A function that stops a SLURM job; None if it has ended."""
    from submitit.slurm.slurm import SlurmJob

    job: Any = SlurmJob(logs / "%j", number)
    if job.done(force_check=True):
        return None
    return lambda: (job.cancel(check=False), job.wait())


def _find_local_job(logs: Path, number: str) -> Callable[[], Any] | None:
    """A function that stops a submitit job on this machine; None if it has ended, or its process id now belongs to another program."""
    import psutil

    try:
        process = psutil.Process(int(number))
        if str(logs) not in " ".join(process.cmdline()):
            return None
    except psutil.Error:
        return None
    return partial(cluster.stop_processes, [process])  # submitit passes the signal on to the children
