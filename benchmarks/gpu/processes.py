"""Commands that a case runs in processes of their own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.context import WORK

MEASURE = ROOT / "benchmarks" / "gpu" / "measure_process.py"


def execute(command: Sequence[Any], limit: float = 300, log: Path | None = None, folder: Path = WORK) -> dict[str, Any]:
    """Seconds, exit code (`code`), largest resident set (`rss`) and output (`text`) of a process."""
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        figures, output = Path(scratch) / "figures.json", log or Path(scratch) / "log.txt"
        between = [sys.executable, "-S", "-P", MEASURE, figures, f"{limit:.0f}", *command]
        with output.open("wb") as stdout:
            subprocess.run(
                list(map(str, between)), cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT,
                check=False,
            )  # fmt: skip
        text = output.read_text(errors="replace")
        print(f"$ {' '.join(map(str, command))}\n{text[-6000:]}", flush=True)
        return {**json.loads(figures.read_text()), "text": text}


def run_command(*command: Any, limit: float = 300) -> dict[str, Any]:
    """The same. Raises: RuntimeError: exit code other than 0."""
    done = execute(command, limit)
    if done["code"]:
        raise RuntimeError(f"exit code {done['code']}: {' | '.join(done['text'].strip().splitlines()[-6:])}")
    return done


def run_peftrun(*overrides: str, limit: float = 300) -> dict[str, Any]:
    """`peftrun OVERRIDES` in a process of its own."""
    return run_command(sys.executable, "-m", "peftrun", *overrides, limit=limit)
