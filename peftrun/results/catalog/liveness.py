"""Facts of a run that change by themselves: whether its process lives, the last logged step, its date in this machine's time zone."""

import os
import platform
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import METRICS

RUNNING, DEAD = "running", "dead"
TAIL = 4096  # bytes read from the end of metrics.jsonl: more than one row
PID_REUSE_MARGIN = 5.0  # seconds; a process that started this long after the run has reused its pid


def refresh_facts(folder: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as they are now."""
    started = facts.get("started")
    current = {**facts, "run": display_path(folder), "date": None}
    with suppress(TypeError, ValueError):
        current["date"] = datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[arg-type]
    if facts.get("status") == RUNNING:
        current["status"] = RUNNING if _is_alive(facts) else DEAD
        import json  # only needed for a running run

        current["steps"] = None  # the last logged step; None before the first
        with suppress(OSError, ValueError, IndexError, KeyError, TypeError), open(f"{folder}/{METRICS}", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            complete = [line for line in file.read().splitlines() if line.endswith(b"}")]  # a row may be half written
            current["steps"] = int(json.loads(complete[-1])["step"])
    for key in ("sweep", "adapter"):
        current[key] = display_path(facts[key]) if facts.get(key) else None
    return current


def display_path(folder: str) -> str:
    """A folder relative to the working directory if it is below it, else absolute."""
    return folder.removeprefix(f"{os.getcwd().rstrip(os.sep)}{os.sep}")


def _is_alive(facts: dict[str, Any]) -> bool:
    """Whether the run's process is alive; a run on another machine is assumed to be."""
    if facts.get("host") not in (None, platform.node()):
        return True
    pid = facts.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # signal 0 only checks that the process exists
    except PermissionError:  # it does, and belongs to another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    process_start = _get_process_start(pid)
    with suppress(KeyError, TypeError, ValueError):
        run_start = datetime.fromisoformat(facts["started"]).timestamp()
        return process_start is None or process_start <= run_start + PID_REUSE_MARGIN
    return True


def _get_process_start(pid: int) -> float | None:
    """Start of a process in Unix seconds; None: unknown on this system; infinite for a zombie, which runs no more."""
    with suppress(OSError, ValueError, IndexError):
        # Fields after the command, which is in parentheses and may hold spaces: 0 is the state, 19 the start in ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return float("inf")
        return _read_boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


@cache
def _read_boot_time() -> float:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime")))
