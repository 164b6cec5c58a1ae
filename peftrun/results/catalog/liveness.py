"""What is true of a run only now: whether its process is still there, how far it has come, its date on this machine's clock."""

import os
import platform
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from peftrun.artifacts.run_layout import METRICS

RUNNING, DEAD = "running", "dead"
TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last row
LATER = 5.0  # seconds: a process that began so much after the run is another one with its number


def refresh_facts(folder: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as they are now."""
    started = facts.get("started")
    now = {
        **facts,
        "run": display_path(folder),
        "date": _format_local_time(started) if isinstance(started, str) else None,
    }
    if facts.get("status") == RUNNING:
        now["status"] = RUNNING if _is_alive(facts) else DEAD
        now["steps"] = _read_last_step(folder)
    for key in ("sweep", "adapter"):
        now[key] = display_path(facts[key]) if facts.get(key) else None
    return now


def display_path(folder: str) -> str:
    """A folder as short as it can be typed from here."""
    here = f"{os.getcwd().rstrip(os.sep)}{os.sep}"
    return folder.removeprefix(here)


def _format_local_time(text: str) -> str | None:
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None


def _is_alive(facts: dict[str, Any]) -> bool:
    """Whether the run's process lives; one on another machine is taken to."""
    if facts.get("host") not in (None, platform.node()):
        return True
    pid = facts.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    began = _get_process_start(pid)
    return began is None or began <= _parse_timestamp(facts.get("started"), began) + LATER


def _parse_timestamp(text: Any, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return otherwise


def _get_process_start(pid: int) -> float | None:
    """When a process began, by the system's clock; None where the system does not tell. One that has ended and is not yet reaped: never."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return float("inf")
        return _read_boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None


@cache
def _read_boot_time() -> float:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime")))


def _read_last_step(folder: str) -> int | None:
    """The step that was logged last."""
    import json

    with suppress(OSError, ValueError, IndexError, KeyError, TypeError), open(f"{folder}/{METRICS}", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        last = [line for line in file.read().splitlines() if line.endswith(b"}")][-1]
        return int(json.loads(last)["step"])
    return None
