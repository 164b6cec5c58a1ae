"""Runs the phases within the budget, each case in a worker, and writes the figures after every case."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.gpu import tables
from benchmarks.gpu.context import LOGS, PATIENCE, TINY
from benchmarks.gpu.machine import ClockLog
from benchmarks.gpu.worker import ANSWERS


class Worker:
    """A process that has imported everything and does one case at a time."""

    def __init__(self, log: BinaryIO) -> None:
        self.answers, write = os.pipe()
        self.buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "worker"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            pass_fds=(write,), env=os.environ | {ANSWERS: str(write)}, process_group=0,
        )  # fmt: skip
        os.close(write)

    def run(self, case: str, limit: float) -> dict[str, Any]:
        """The case's figures, or its `error`; `over`: this process can do no more."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{case}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"its process ended before it began (exit code {self.process.wait()})", "over": True}
        until = time.monotonic() + limit
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.kill()
                return {"error": f"took longer than {limit:.0f} s", "over": True}
            piece = os.read(self.answers, 1 << 16)
            if not piece:
                return {"error": f"its process died (exit code {self.process.wait()})", "over": True}
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def kill(self) -> None:
        """Ends the process and what it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
            os.close(self.answers)

    def close(self) -> None:
        """Lets the process end by itself, for three seconds."""
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self.kill()


class Runner:
    """Args: options: as typed. output: the JSON file. machine: what is written beside the figures."""

    def __init__(self, options: Any, output: Path, machine: dict[str, Any]) -> None:
        self.options, self.output, self.began = options, output, time.monotonic()
        self.results: dict[str, Any] = {"machine": machine, "tiny": TINY, "rounds": options.rounds, "phases": {}}
        self.log = (LOGS / "log.txt").open("ab")
        self.clocks = ClockLog(LOGS / "clocks.csv")
        self.worker: Worker | None = None
        self.standby: Worker | None = None

    def time_left(self) -> float:
        """Seconds of the budget."""
        return self.options.budget - (time.monotonic() - self.began)

    def report(self, text: str) -> None:
        """Prints, and writes into the log."""
        print(text, flush=True)
        self.log.write(f"{text}\n".encode())
        self.log.flush()

    def write(self) -> None:
        """The JSON file and the tables beside it, each replaced whole."""
        for file, text in (
            (self.output, json.dumps(self.results, indent=1, default=str) + "\n"),
            (self.output.with_suffix(".md"), tables.build_page(self.results)),
        ):
            new = file.with_name(f".{file.name}")
            new.write_text(text, encoding="utf-8")
            os.replace(new, file)

    def run_phases(self) -> None:
        """All phases as far as the budget reaches; a fault in one leaves the next."""
        for name in self.options.phases:
            if self.time_left() < 10:
                self.report(f"\n{name}: not run, no time left")
                continue
            try:
                self.run_phase(name)
            except Exception as error:
                self.report(f"FAILED {name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")

    def run_phase(self, name: str) -> None:
        """Its cases, then its tables and a line for each that failed."""
        phase = import_module(f"benchmarks.gpu.phases.{name}")
        begin, start = time.monotonic(), self.clocks.mark()
        results: dict[str, Any] = {}
        self.results["phases"][name] = found = {"cases": results}
        self.report(f"\n{name} ({self.time_left():.0f} s left)")
        limit = min(PATIENCE * self.options.limits.get(name, phase.SECONDS), self.time_left())
        for case, (seconds, alone) in phase.list_cases().items():
            if not re.search(self.options.only, f"{name}/{case}"):
                continue
            left = min(limit - (time.monotonic() - begin), self.time_left()) - 1
            if left < 5:
                results[case] = {"error": "not run: no time left"}
                continue
            results[case] = self.run_case(f"{name}/{case}", min(PATIENCE * seconds, left), alone and not TINY)
            self.write()
        found |= {"seconds": round(time.monotonic() - begin, 1), "clocks": self.clocks.summarize(start)}
        self.write()
        self.report("\n\n".join(tables.build_phase(name, found)))
        for case, figures in results.items():
            if "error" in figures:
                self.report(
                    "\n    ".join([f"FAILED {name}/{case}: {figures['error']}", *figures.get("trace", [])[-8:]])
                )

    def run_case(self, case: str, limit: float, alone: bool) -> dict[str, Any]:
        """The figures and `seconds` of one case. `alone`: in a process of its own."""
        if alone:
            self.end_worker()
        worker = self.worker = self.worker or self.take_worker()
        if self.options.verbose:
            self.report(f"- {case}")
        begin = time.monotonic()
        figures = worker.run(case, limit)
        figures.setdefault("seconds", round(time.monotonic() - begin, 2))
        if figures.pop("over", False):
            worker.kill()
            self.worker = None
        elif alone:
            self.end_worker()
        return figures

    def take_worker(self) -> Worker:
        """The one that stands by, or a new one. On a GPU the next one begins to import, on another core and without the GPU."""
        worker = self.standby or Worker(self.log)
        self.standby = Worker(self.log) if not TINY and self.time_left() > 60 else None
        return worker

    def end_worker(self) -> None:
        """Ends the worker that computes, if there is one."""
        if self.worker:
            self.worker.close()
        self.worker = None

    def close(self) -> None:
        """Ends every process, writes, closes the log."""
        for worker in (self.worker, self.standby):
            if worker:
                worker.kill()
        self.clocks.close()
        self.write()
        self.report(
            f"\n{time.monotonic() - self.began:.0f} s; {self.output.with_suffix('.md')}, all figures: {self.output}"
        )
        self.log.close()
