"""Run groups of a sweep as processes of this machine, one on each device at a time. Light."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peftrun import console
from peftrun.formatting import format_count
from peftrun.planning.joint_memory import Limits
from peftrun.sweep import cluster
from peftrun.sweep.cluster import JobEnd
from peftrun.sweep.devices import WorkerDevice

LOGS = ".workers"  # in the sweep's folder: the output of the workers of each device
MODULE = "peftrun.sweep.device_worker"


def send(groups: Sequence[Sequence[Path]], devices: Sequence[WorkerDevice], allowed: Limits, max_retries: int) -> None:
    """Run all groups, in this order, as devices become free; see `cluster.run_on_cluster`.

    Args: allowed: limits of the cells in one step of a worker. max_retries: how often a group is sent again if its worker died.
    """
    logs = groups[0][0].absolute().parent / LOGS
    logs.mkdir(exist_ok=True)
    _stop_earlier_workers(logs)
    workers = LocalWorkers(logs, devices, allowed, cluster.count_threads(len(devices), len(groups)))
    backend = cluster.ClusterBackend(
        ", ".join(device.name for device in devices), workers.start, workers.read_end, workers.stop
    )
    try:
        cluster.run_on_cluster(groups, backend, len(devices), max_retries)
    finally:
        workers.kill_survivors()


class LocalWorkers:
    """The processes of one launch.

    Attributes:
        free: devices without a worker.
        running: process → its device.
    """

    def __init__(self, logs: Path, devices: Sequence[WorkerDevice], allowed: Limits, threads: int) -> None:
        self.logs, self.allowed, self.threads = logs, allowed, threads
        self.free = deque(devices)
        self.running: dict[subprocess.Popen[bytes], WorkerDevice] = {}

    def start(self, folders: Sequence[Path]) -> subprocess.Popen[bytes]:
        """A process that runs the cells in `folders` on a free device."""
        device = self.free.popleft()
        path = self._get_log(device)
        console.print_info(
            f"{device.name}: {format_count(len(folders), 'cell')}; output in {console.shorten_path(path)}"
        )
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(self.logs)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Each has its share of the cores; passive threads do not spin while they wait.
                env={"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
                | os.environ
                | device.environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which ends the workers in order
            )
        self.running[process] = device
        job = {"folders": [str(folder) for folder in folders], "limits": dataclasses.asdict(self.allowed)}
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; `read_end` says how
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        return process

    def read_end(self, process: subprocess.Popen[bytes]) -> JobEnd | None:
        """How a worker ended, which frees its device; None while it runs."""
        code = process.poll()
        if code is None or process not in self.running:
            return None if code is None else JobEnd()
        device = self.running.pop(process)
        self.free.append(device)
        if code == 0:
            return JobEnd()
        reason = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        path = self._get_log(device)
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = f"; the last line of {path}: {lines[-1].strip()[:200]}" if lines else ""
        return JobEnd(died=f"{device.name}: {reason}{last}")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a worker to finish its records and end."""
        process.terminate()

    def kill_survivors(self) -> None:
        """End the workers that still run, with their child processes."""
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _get_log(self, device: WorkerDevice) -> Path:
        return self.logs / f"{device.name.replace(':', '-')}.log"


def _stop_earlier_workers(logs: Path) -> None:
    """Stop workers of a killed launch that have not ended yet, before their cells are sent again."""
    import psutil

    earlier = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[-2:] == [MODULE, str(logs)]
    ]
    if earlier:
        cluster.report_earlier_jobs(len(earlier))
        cluster.stop_processes(earlier)
