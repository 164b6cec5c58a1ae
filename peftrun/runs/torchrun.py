"""Several processes for one run: started by torch's launcher, watched, and their outcome brought home. Light.

The workers run `peftrun.runs.torchrun_worker` on the run folder's own config. Each writes into a log of its own; what the first one says is
shown as it comes, what the launcher says is kept for the case that a worker dies without a word.
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
POLL = 0.1  # seconds between looks at the log
LAST_LINES = 12


def run_workers(spec: RunSpec, out_dir: Path) -> RunResult:
    """What the first worker's action returned.

    Raises: PeftrunError: what a worker found at fault. DeviceError: a worker died without saying why.
    """
    with (out_dir / LAUNCHER_LOG).open("w", encoding="utf-8") as log:
        launcher = subprocess.Popen(
            _build_command(spec.device, out_dir),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=_build_environment(spec.device),
            start_new_session=True,
        )
        try:
            _follow_log(launcher, out_dir / _name_worker_log(0))
        except BaseException:
            _stop_launcher(launcher)
            raise
    _raise_fault(launcher.returncode, out_dir)
    found = atomic_files.read_json(out_dir / OUTCOME) if (out_dir / OUTCOME).is_file() else {}
    _remove_logs(out_dir)
    # Where nothing came back, the first machine knows what was read.
    usage.mark_used(spec, found.get("read", [field.name for field in dataclasses.fields(spec)]))
    return _build_result(found, out_dir, spec.device)


def _name_worker_log(rank: int) -> str:
    return f"worker-{rank}.log"


def _build_command(device: DeviceSpec, out_dir: Path) -> list[str]:
    given = ["--nproc-per-node", str(device.processes)]
    if device.machines == 1:
        given += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    else:
        given += ["--nnodes", str(device.machines), "--node-rank", str(device.machine_rank)]
        given += ["--master-addr", str(device.main_address), "--master-port", str(device.main_port)]
    return [sys.executable, "-m", "torch.distributed.run", *given, "-m", "peftrun.runs.torchrun_worker", str(out_dir)]


def _build_environment(device: DeviceSpec) -> dict[str, str]:
    """Processes that share processors must share them out, or their threads wait for each other's turns."""
    return {"OMP_NUM_THREADS": str(share_cpus(device.processes)), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def share_cpus(processes: int) -> int:
    """Processors for each of so many processes on this machine, at least one."""
    return max(1, (os.cpu_count() or 1) // processes)


def _follow_log(launcher: subprocess.Popen[bytes], log: Path) -> None:
    """Shows what is added to the log, until the launcher has ended."""
    shown = 0
    while True:
        ended = launcher.poll() is not None
        text = log.read_bytes()[shown:] if log.is_file() else b""
        whole = text if ended else text[: text.rfind(b"\n") + 1]
        sys.stderr.write(whole.decode(errors="replace"))
        sys.stderr.flush()
        shown += len(whole)
        if ended:
            return
        time.sleep(POLL)


def _stop_launcher(launcher: subprocess.Popen[bytes]) -> None:
    """Ends the launcher and with it the workers; those that do not listen are killed."""
    launcher.terminate()
    try:
        launcher.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def _raise_fault(code: int, out_dir: Path) -> None:
    if (out_dir / FAULT).is_file():
        fault = atomic_files.read_json(out_dir / FAULT)
        _remove_logs(out_dir)
        (out_dir / FAULT).unlink()
        kind = getattr(errors, fault["kind"], PeftrunError)
        raise kind(*fault["lines"])
    if code:
        logs = sorted(out_dir.glob("worker-*.log")) or [out_dir / LAUNCHER_LOG]
        raise DeviceError(
            f"device.processes: a worker died (exit code {code}); its last words are in {logs[-1]}: {_read_last_line(logs[-1])}; mend that, and run again"
        )


def _read_last_line(log: Path) -> str:
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if line.strip()
    ]
    return lines[-1].strip()[:200] if lines else "none"


def _remove_logs(out_dir: Path) -> None:
    for log in (*out_dir.glob("worker-*.log"), out_dir / LAUNCHER_LOG, out_dir / OUTCOME):
        log.unlink(missing_ok=True)


def _build_result(found: dict[str, Any], out_dir: Path, device: DeviceSpec) -> RunResult:
    """On a machine that is not the first nothing is written: what came out lies on the first."""
    if not found:
        return RunResult(
            out_dir, {"machine_rank": device.machine_rank}, summary=[("done", "what came out is on the first machine")]
        )
    spread = {"strategy": device.strategy, "processes": device.processes, "machines": device.machines}
    return RunResult(
        out_dir,
        {**found["facts"], "spread": spread},
        found["metrics"],
        artifacts=[Path(one) for one in found["artifacts"]],
        summary=[(str(key), str(value)) for key, value in found["summary"]],
        next_commands=found["next_commands"],
        objective=found["objective"],
    )


def write_result(out_dir: Path, result: RunResult, read: Sequence[str]) -> None:
    """Leaves a worker's outcome for the process that launched it. `read`: the keys that were read there."""
    atomic_files.write_json(
        out_dir / OUTCOME,
        {
            "facts": result.facts,
            "metrics": result.metrics,
            "artifacts": [str(one) for one in result.artifacts],
            "summary": result.summary,
            "next_commands": result.next_commands,
            "objective": result.objective,
            "read": list(read),
        },
    )


def write_error(out_dir: Path, kind: str, lines: Sequence[str]) -> None:
    """Leaves what a worker found at fault; the first to say something is heard."""
    if not (out_dir / FAULT).exists():
        atomic_files.write_json(out_dir / FAULT, {"kind": kind, "lines": list(lines)})
