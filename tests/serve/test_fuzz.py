"""Requests at random against a real server; benchmarks/serve_fuzz.py runs as long as it is told to."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_fuzz.py"


@pytest.mark.slow
def test_requests_at_random():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", "0.35"], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert '"wrong": []' in done.stdout
