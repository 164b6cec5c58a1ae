"""Run several processes for one run: start them with torch's launcher, follow them, and collect their outcome. Light.

Each worker runs `peftrun.runs.torchrun_worker` on the run folder's config and writes its own log. The log of rank 0 is shown as it grows;
the launcher's log is kept in case a worker dies without an error file.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftrun import errors
from peftrun.config import usage
from peftrun.config.schema.run import DeviceSpec, RunSpec
from peftrun.errors import DeviceError, PeftrunError
from peftrun.io import atomic_files
from peftrun.result import RunResult

OUTCOME, FAULT = "outcome.json", "fault.json"
LAUNCHER_LOG = "launcher.log"
POLL = 0.1  # seconds between reads of the log
LAST_LINES = 12  # of a log, in which the last words are looked for


def run_workers(spec: RunSpec, out_dir: Path) -> RunResult:
    """The result of the action in the rank-0 worker.

    Raises: PeftrunError: a worker's error. DeviceError: a worker died without an error file.
    """
    with (out_dir / LAUNCHER_LOG).open("w", encoding="utf-8") as log:
        launcher = subprocess.Popen(
            _build_command(spec.device, out_dir),
            stdout=log,
            stderr=log,
            stdin=subprocess.PIPE,  # nothing is written: its end tells the workers that this process has died
            # Without OMP_NUM_THREADS every worker would start a thread per core; passive threads do not spin while they wait.
            env={
                "OMP_NUM_THREADS": str(share_cpus(spec.device.num_processes)),
                "OMP_WAIT_POLICY": "PASSIVE",
                **os.environ,
            },
            start_new_session=True,  # a process group of its own, so that Ctrl-C reaches only this process
        )
        try:
            _follow_log(launcher, out_dir / "worker-0.log")
        except BaseException:
            launcher.terminate()  # terminates its workers
            try:
                launcher.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
            raise
    _raise_fault(launcher.returncode, out_dir)
    outcome = atomic_files.read_json(out_dir / OUTCOME) if (out_dir / OUTCOME).is_file() else {}
    _remove_logs(out_dir)
    # Only the first machine has an outcome; on the others all keys count as read, so that no warning is printed.
    usage.mark_used(spec, outcome.get("read", [field.name for field in dataclasses.fields(spec)]))
    return _build_result(outcome, out_dir, spec.device)


def _build_command(device: DeviceSpec, out_dir: Path) -> list[str]:
    arguments = ["--nproc-per-node", str(device.num_processes)]
    if device.num_machines == 1:
        # Port 0: a free one, so that several runs fit on a machine.
        arguments += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    else:
        arguments += ["--nnodes", str(device.num_machines), "--node-rank", str(device.machine_rank)]
        arguments += ["--master-addr", str(device.main_process_ip), "--master-port", str(device.main_process_port)]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *arguments,
        "-m",
        "peftrun.runs.torchrun_worker",
        str(out_dir),
    ]


def share_cpus(processes: int) -> int:
    """CPU cores per process if `processes` share this machine, at least one."""
    return max(1, (os.cpu_count() or 1) // processes)


def _follow_log(launcher: subprocess.Popen[bytes], log: Path) -> None:
    """Copy the log to standard error as it grows, until the launcher has ended."""
    offset = 0
    while True:
        has_ended = launcher.poll() is not None
        text = log.read_bytes()[offset:] if log.is_file() else b""
        # Up to the last line break: the rest of the line, or of a UTF-8 character, is still to come.
        complete = text if has_ended else text[: text.rfind(b"\n") + 1]
        sys.stderr.write(complete.decode(errors="replace"))
        sys.stderr.flush()
        offset += len(complete)
        if has_ended:
            return
        time.sleep(POLL)


def _raise_fault(code: int, out_dir: Path) -> None:
    if (out_dir / FAULT).is_file():
        fault = atomic_files.read_json(out_dir / FAULT)
        _remove_logs(out_dir)
        (out_dir / FAULT).unlink()
        error_type = getattr(errors, fault["kind"], PeftrunError)
        raise error_type(*fault["lines"])
    if code:
        log = [out_dir / LAUNCHER_LOG, *sorted(out_dir.glob("worker-*.log"))][-1]
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        message = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "none")
        raise DeviceError(
            f"device.num_processes: a worker died (exit code {code}); the last line of {log} is: {message}; fix that, and run again"
        )


def _remove_logs(out_dir: Path) -> None:
    for log in (*out_dir.glob("worker-*.log"), out_dir / LAUNCHER_LOG, out_dir / OUTCOME):
        log.unlink(missing_ok=True)


def _build_result(outcome: dict[str, Any], out_dir: Path, device: DeviceSpec) -> RunResult:
    """The outcome of rank 0 as a result; on other machines, which have no outcome, a note."""
    if not outcome:
        return RunResult(
            out_dir, {"machine_rank": device.machine_rank}, summary=[("done", "results are on the first machine")]
        )
    processes = {"strategy": device.strategy, "processes": device.num_processes, "machines": device.num_machines}
    return RunResult(
        out_dir,
        {**outcome["facts"], "spread": processes},
        outcome["metrics"],
        artifacts=[Path(path) for path in outcome["artifacts"]],
        summary=[(str(key), str(value)) for key, value in outcome["summary"]],
        next_commands=outcome["next_commands"],
        objective=outcome["objective"],
    )


def write_result(out_dir: Path, result: RunResult, read_keys: Sequence[str]) -> None:
    """Write a worker's result for the launching process. `read_keys`: the config keys that the worker has read."""
    atomic_files.write_json(
        out_dir / OUTCOME,
        {
            "facts": result.facts,
            "metrics": result.metrics,
            "artifacts": [str(path) for path in result.artifacts],
            "summary": result.summary,
            "next_commands": result.next_commands,
            "objective": result.objective,
            "read": list(read_keys),
        },
    )


def write_error(out_dir: Path, kind: str, lines: Sequence[str]) -> None:
    """Write a worker's error for the launching process; the first worker to fail wins."""
    if not (out_dir / FAULT).exists():
        atomic_files.write_json(out_dir / FAULT, {"kind": kind, "lines": list(lines)})
