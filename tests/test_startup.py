"""What must be instant imports nothing heavy, and reads well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import cases

ROWS = Path(__file__).parent.parent / "peftrun" / "data" / "spanish_sentiment.csv"
HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "trl")
PROBE = f"""
import runpy, sys
sys.argv = ["peftrun", *sys.argv[1:]]
try:
    runpy.run_module("peftrun", run_name="__main__")
finally:
    print("HEAVY", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
    print("SLOW", [name for name in ("numpy", "pydantic", "rich", "ssl") if name in sys.modules], file=sys.stderr)
"""


def run(where, *args, **env):
    return subprocess.run(
        [sys.executable, "-c", PROBE, *args],
        cwd=where,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )


@cases(
    "args, env, shown",
    [
        (["--help"], {}, "lora=dora"),
        (["action=merge", "--help"], {}, "output_dir"),
        (["--version"], {}, "peftrun 0."),
        (["--cfg", "job"], {}, "learning_rate"),
        (["-sc", "query=bash"], {"COMP_LINE": "peftrun lora=", "COMP_POINT": "13"}, "lora=rslora"),
        (["--info", "defaults-tree"], {}, "config"),
        (["lora.r=0"], {}, ""),
        (["lora=nosuch", "lora.rr=1"], {}, ""),
        (["action=reload", "adapter=nowhere"], {}, ""),
        (["task=instruction", "task.data.path=nowhere.csv"], {}, ""),
        (["--lora_r", "8"], {}, ""),
        (["task=chat", f"task.data.path={ROWS}"], {}, ""),  # whose columns are others
        (
            ["model=qwen3", "task=plain_text", f"task.data.path={ROWS}"],
            {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "nowhere"},
            "",
        ),
    ],
    every=4,
)
def test_nothing_heavy_is_imported(tmp_path, args, env, shown):
    done = run(tmp_path, *args, **env)
    assert "HEAVY []" in done.stderr, done.stderr
    assert shown in done.stdout
    slow = {"--help": [], "--version": [], "--cfg": [], "lora.r=0": ["pydantic"]}.get(args[0])
    assert slow is None or f"SLOW {slow}" in done.stderr, done.stderr


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = f"import peftrun, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_real_run_does_import_torch(tmp_path):
    done = run(tmp_path, "device=cuda")  # fails after the imports, on a machine without CUDA; there, it trains
    assert "'torch'" in done.stderr


def test_help_names_every_option_and_the_teams(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "ours.yaml").write_text("# Our private task.\n# peftrun task=ours\n")
    done = run(tmp_path, "--help", "--config-dir", str(tmp_path))
    assert "task=ours" in done.stdout and "Our private task." in done.stdout
    assert done.returncode == 0
