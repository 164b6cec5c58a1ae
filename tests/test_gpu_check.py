"""`make gpu`, as far as a CPU goes: every phase runs on tiny models, and what a worker does to itself costs one case."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "benchmarks.gpu"]
# Of the phases with many cases, which tests/ covers otherwise, a few; of every other phase all.
ONLY = (
    r"^(swap|methods/lora$)|^env/(gpu|ceilings|train$)|^correct/(same_seed$|liger|packing)|^profile/(peftrun|trainer.quiet|joint_2)"
    r"|^train1b/(base|equal.trainer$|peftrun@|peftrun_compile@)|^train8b/(base|trl@)|^lengths/(base|equal.peftrun_padding_free|peftrun_packed@)"
    r"|^qlora/(equal|peftrun)|^sweep/\w+_8_135m|^merge/(base|cp|peftrun@)|^serve/(load|mixed|per|one|server)"
)


def run_benchmark(folder: Path, *options: str) -> tuple[str, dict]:
    """What it printed, and its figures."""
    done = subprocess.run(
        [*COMMAND, "--out", str(folder), "--name", "tiny", *options],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (folder / "tiny.json").exists(), done.stdout + done.stderr
    return done.stdout, json.loads((folder / "tiny.json").read_text())


@pytest.mark.slow
def test_every_phase_runs_on_tiny_models(tmp_path):
    phases = "env,correct,profile,train1b,train8b,lengths,qlora,sweep,merge,swap,serve,methods"
    printed, results = run_benchmark(tmp_path, "--tiny", "--phases", phases, "--only", ONLY, "--budget", "560")
    cases = {
        f"{name}/{case}": figures
        for name, phase in results["phases"].items()
        for case, figures in phase["cases"].items()
    }
    assert {name.partition("/")[0] for name in cases} == set(phases.split(","))
    bad = {name: figures for name, figures in cases.items() if "error" in figures or figures.get("ok") is False}
    assert not bad, json.dumps(bad, indent=1) + printed
    missing = {name: figures["missing"] for name, figures in cases.items() if "missing" in figures}
    assert {"correct/liger", "train1b/peftrun_compile@1"} <= missing.keys(), missing
    page = (tmp_path / "tiny.md").read_text()
    assert "needs a GPU" in page and all(f"## {name}\n" in page for name in phases.split(",")), page
    quiet = cases["profile/peftrun.quiet"]
    assert quiet["aten ops"] > 100 and quiet["host reads"] <= cases["profile/peftrun.logged"]["host reads"], quiet


def test_a_machine_without_a_gpu_is_told_what_to_type(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert "make gpu ARGS=--tiny" in done.stderr and not any(tmp_path.iterdir())
    done = subprocess.run([*COMMAND, "--phases", "env,train2b"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "train2b" in done.stderr and "train1b" in done.stderr


@pytest.mark.slow
def test_a_case_that_hangs_or_a_process_that_dies_is_one_failed_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu.runner import Worker

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (tmp_path / "log.txt").open("wb") as log:
        worker = Worker(log)
        figures = worker.run("env/ceilings", 0.1)  # still importing
        assert figures["over"] and "longer" in figures["error"]
        worker = Worker(log)
        worker.process.kill()
        figures = worker.run("env/ceilings", 60)
        assert figures["over"] and "process" in figures["error"]
        worker = Worker(log)
        assert "KeyError" in worker.run("env/nothing", 300)["error"]  # and goes on
        worker.close()


def test_clocks_are_those_of_the_seconds_in_which_the_card_computed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu import machine

    lines = ["1980, 300.5, 50, 90", "345, 70, 30, 0", "1755, 690, 61, 100", "[N/A], 70, 30, 5", "1965, 5"]
    clocks = machine.summarize_samples(lines)
    assert (
        clocks["clocks.sm"] == {"min": 1755, "median": 1867.5, "max": 1980} and clocks["temperature.gpu"]["max"] == 61
    )
    assert machine.summarize_samples([]) == {}
    peaks = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L4": 121,
        "NVIDIA T4": None,
    }
    assert {name: machine.find_peak(name) for name in peaks} == peaks
    assert machine.slugify_card({"name": "NVIDIA A100-SXM4-80GB"}) == "a100_sxm4_80gb"
