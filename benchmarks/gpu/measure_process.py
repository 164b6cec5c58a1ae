"""Runs a command; its seconds, exit code and largest resident set in bytes go to a file.

    python -S -P measure_process.py FILE SECONDS COMMAND …

A small process in between: what a worker forks itself would count the worker's memory as its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure_process(output: str, limit: float, command: list[str]) -> None:
    """Writes the figures. At the limit the process gets Ctrl-C, so that pytest names what failed so far, and ten seconds later SIGKILL."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)

    def interrupt(*_: Any) -> None:
        process.send_signal(signal.SIGINT)
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(10)

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(int(limit))
    _, status, usage = os.wait4(process.pid, 0)
    signal.alarm(0)
    code, size = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
    figures = {"seconds": time.perf_counter() - begin, "code": code, "rss": size}
    Path(output).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    measure_process(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
