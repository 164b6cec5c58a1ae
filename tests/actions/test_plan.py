"""action=plan: what a run or a sweep would take, said before anything is loaded, and nothing written by a sweep's plan."""

import time

import pytest
from faults import check_failed, check_refused
from test_startup import run

GRID = ["lora.r=4,8,16", "trainer.learning_rate=1e-4,2e-4,3e-4,5e-4,1e-3", "seed=range(1,21)"]


def everything_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_three_hundred_cells_are_planned_in_seconds_without_torch(tmp_path):
    started = time.perf_counter()
    done = run(tmp_path, "-m", *GRID, "action=plan", "device=cpu")
    seconds = time.perf_counter() - started
    assert done.returncode == 0 and "HEAVY []" in done.stderr, done.stderr
    assert seconds < 5, f"{seconds:.1f} s"  # 2 s on a quiet machine
    assert done.stdout.count("waiting") == 300 and "1      300    together on one base" in done.stdout
    assert everything_below(tmp_path) == []


def test_a_plan_says_groups_waves_memory_and_time(cli, llama, on_tiny, tmp_path):
    grid = [
        "-m",
        *on_tiny(llama),
        "lora=lora,ia3",
        "seed=1,2,1",
        "hydra.launcher.max_cells=1",
        "hydra/launcher=shared_base",
    ]
    outcome = cli(*grid, "action=plan")
    assert outcome.code == 0, outcome.err
    for text in (
        "lora=lora seed=1  (also number 2)", "together on one base", "alone: lora.method=ia3", "0.90 GB", "unknown: no run of tiny-llama",
    ):  # fmt: skip
        assert text in outcome.out
    waves = outcome.out.partition("\nwave ")[2].splitlines()[1:]
    assert [line.split()[:3] for line in waves[:4]] == [
        ["1", "1", "1"],
        ["2", "1", "1"],
        ["3", "2", "1"],
        ["4", "3", "1"],
    ]
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=basic"], ["hydra.launcher.memory_limit=1GiB", "hydra/launcher=shared_base"]]
)
def test_any_launcher_is_planned_alike(cli, llama, on_tiny, launcher):
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", "action=plan", *launcher)
    assert outcome.code == 0 and "1      2      together on one base" in outcome.out, outcome.err


def test_a_cell_that_would_be_refused_is_told_and_the_others_planned(cli, llama, on_tiny):
    outcome = cli("-m", *on_tiny(llama), "lora.r=0,4", "action=plan")
    assert outcome.code == 1 and "lora.r=0: must be greater than or equal to 1" in outcome.err
    assert "refused" in outcome.out and "waiting" in outcome.out


def test_a_plan_of_nothing_but_mistakes_is_refused(cli, tmp_path):
    check_refused(cli, tmp_path, ["-m", "lora.rr=1,2", "action=plan"], ["there is no such key"])
    check_refused(cli, tmp_path, ["-m", "lora.r=0,-1", "action=plan"], ["lora.r=0: must be"], ["lora.r=-1: must be"])
    assert everything_below(tmp_path) == []


def test_options_of_the_launcher_are_checked(cli, tmp_path):
    grid = ["-m", "seed=1,2", "action=plan", "hydra/launcher=shared_base"]
    check_refused(
        cli, tmp_path, [*grid, "hydra.launcher.memory_limit=much"], ["hydra.launcher.memory_limit=much: must be"]
    )
    check_refused(cli, tmp_path, [*grid, "hydra.launcher.max_cells=0"], ["hydra.launcher.max_cells=0: must be"])


def test_one_run_is_planned_too(tmp_path, trained, cli, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "action=plan")
    assert outcome.code == 0, outcome.err
    assert "about 0.90 GB" in outcome.out and "unknown: no run of tiny-llama here yet" in outcome.out
    assert outcome.record()["plan"]["memory"] > 9e8


def test_a_plan_of_one_run_imports_nothing_heavy(tmp_path):
    assert "HEAVY []" in run(tmp_path, "action=plan", "device=cpu").stderr


def test_what_training_would_refuse_its_plan_refuses(cli, tmp_path, trained, llama, on_tiny):
    check_failed(cli, tmp_path, [*on_tiny(llama), "action=plan", f"adapter={trained}"], ["would ignore this one"])
