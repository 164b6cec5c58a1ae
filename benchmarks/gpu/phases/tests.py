"""The project's own tests of actions, LoRA, training and sweeps, on the GPU: fourteen processes, ten failures at most."""

import os
import re
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.context import LOGS, PATIENCE, TINY, Case, need_package
from benchmarks.gpu.processes import execute

SECONDS = 300
FILES = (
    ["tests/test_lora.py"]
    if TINY
    else ["tests/actions", "tests/test_lora.py", "tests/test_training.py", "tests/sweep/test_together.py"]
)
OPTIONS = ("-vv", "-rfE", "-p", "no:cacheprovider", "-m", "not slow", "--maxfail=10", "--tb=short")


def list_cases() -> dict[str, Case]:
    """Name → case."""
    return {"project": Case(290.0)}


def run_case(case: str) -> dict[str, Any]:
    """The last line, and the names of what failed; the whole output is in tests.txt."""
    need_package("pytest", "make test, or pip install 'peftrun[test]'")
    os.environ.pop("PEFTRUN_CACHE", None)  # tests have their own
    several = ["-n", "14"] if find_spec("xdist") and not TINY else []
    limits = ["--timeout=100"] if find_spec("pytest_timeout") else ["-o", "timeout=0"]
    command = [sys.executable, "-m", "pytest", *OPTIONS, *limits, *FILES, *several]
    done = execute(command, 270 * PATIENCE, LOGS / "tests.txt", ROOT)
    failed = re.findall(r"(?:FAILED|ERROR) (tests/\S+)|^(tests/\S+) (?:FAILED|ERROR)", done["text"], re.MULTILINE)
    names = sorted({name for pair in failed for name in pair if name})
    lines = (line for line in reversed(done["text"].splitlines()) if re.search(r"\d+ (passed|failed|error)", line))
    summary = next(lines, "stopped by the limit, without a summary").strip("= ")
    return {"ok": done["code"] == 0, "summary": summary, "failed": ", ".join(names)[:1500]}
