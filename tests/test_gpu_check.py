"""The check for GPU machines, as far as a CPU goes: its script still runs against this code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_it_runs_on_tiny_models(tmp_path):
    script = [sys.executable, "benchmarks/gpu/check.py", "--tiny", "--phases", "env,correct", "--budget", "600"]
    only = ["--only", "versions|train$|reload$|merge$|generate$|generate_mixed|shared_base$|replay"]
    done = subprocess.run(
        [*script, *only, "--out", str(tmp_path)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    results = json.loads((tmp_path / "results.json").read_text())
    cases = {name: figures for phase in ("env", "correct") for name, figures in results.get(phase, {}).items()}
    assert cases, done.stdout + done.stderr
    assert not [name for name, figures in cases.items() if "error" in figures or figures.get("ok") is False], cases
