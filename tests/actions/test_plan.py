"""action=plan: what a run or a sweep would take; from files nothing is loaded, by measured steps nothing is saved, and a sweep's plan writes nothing."""

import json
from types import SimpleNamespace

import pytest
from cases import cases
from conftest import TINY_STEPS
from faults import check_failed, check_refused
from test_startup import run

from peftrun.training import measure_steps

GRID = ["lora.r=4,8,16", "trainer.learning_rate=1e-4,2e-4,3e-4,5e-4,1e-3", "seed=range(1,21)"]


def everything_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.slow
def test_three_hundred_cells_are_planned_without_torch(tmp_path):
    done = run(tmp_path, "-m", *GRID, "action=plan", "device=cpu")  # 2 s on a quiet machine
    assert done.returncode == 0 and "HEAVY []" in done.stderr, done.stderr
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
        "lora=lora seed=1  (also number 2)", "together on one base", "alone: lora.method=ia3", "902 MB", "652 MB", "unknown: no run of tiny-llama",
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


@pytest.mark.slow
@cases("launcher", [[], ["hydra/launcher=basic"], ["hydra.launcher.memory_limit=1GiB", "hydra/launcher=shared_base"]])
def test_any_launcher_is_planned_alike(cli, llama, on_tiny, launcher):
    outcome = cli("-m", *on_tiny(llama), "seed=1,2", "action=plan", *launcher)
    assert outcome.code == 0 and "1      2      together on one base" in outcome.out, outcome.err


def test_a_cell_that_would_be_refused_is_told_and_the_others_planned(cli, llama, on_tiny):
    outcome = cli("-m", *on_tiny(llama), "lora.r=0,4", "action=plan")
    assert outcome.code == 1 and "lora.r=0: must be greater than or equal to 1" in outcome.err
    assert "refused" in outcome.out and "waiting" in outcome.out


def test_a_plan_of_nothing_but_mistakes_is_refused(cli, tmp_path):
    check_refused(
        cli, tmp_path, ["-m", "lora.rr=1,2", "action=plan"], ["lora.rr=1: there is no"], ["lora.rr=2: there is no"]
    )
    check_refused(cli, tmp_path, ["-m", "lora.r=0,-1", "action=plan"], ["lora.r=0: must be"], ["lora.r=-1: must be"])
    assert everything_below(tmp_path) == []


def test_options_of_the_launcher_are_checked(cli, tmp_path):
    grid = ["-m", "seed=1,2", "action=plan", "hydra/launcher=shared_base"]
    check_refused(
        cli, tmp_path, [*grid, "hydra.launcher.memory_limit=much"], ["hydra.launcher.memory_limit=much: must be"]
    )
    check_refused(cli, tmp_path, [*grid, "hydra.launcher.max_cells=0"], ["hydra.launcher.max_cells=0: must be"])


def test_one_run_is_planned_from_files(cli, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "action=plan", "action.measure_steps=0")
    assert outcome.code == 0, outcome.err
    for text in (
        "about 652 MB",
        "fits: ",
        "60 steps × 4 rows = 240 rows",
        "unknown: no run of tiny-llama below outputs/ yet",
    ):
        assert text in outcome.out
    plan = outcome.record()["plan"]
    assert plan["exact"] and plan["memory"]["peak"] > 6e8 and plan["seconds"] is None and plan["measured"] is None


def test_a_plan_from_files_imports_nothing_heavy(tmp_path):
    assert "HEAVY []" in run(tmp_path, "action=plan", "device=cpu", "action.measure_steps=0").stderr


@pytest.fixture
def planned(cli, llama, on_tiny):
    def run(*overrides):
        outcome = cli(*on_tiny(llama), "action=plan", *overrides)
        assert outcome.code == 0, outcome.err
        return outcome, outcome.record()["plan"]

    return run


def test_measured_steps_tell_the_time_and_leave_nothing_behind(planned, trained):
    outcome, plan = planned(*TINY_STEPS)
    record = json.loads((trained / "record.json").read_text())
    assert (plan["trained"], plan["parameters"]) == (record["trainable_parameters"], record["parameters"])
    assert (plan["rows"], plan["steps"]) == (record["data"]["train_rows"], 4)
    assert set(plan["parts"]) == {"start", "before", "training", "after"} and plan["measured"]["peak"] > 3e8
    assert plan["seconds"] == pytest.approx(sum(plan["parts"].values()), abs=0.3)
    assert everything_in(outcome.run_dir) == {".hydra", "config.yaml", "record.json"}
    assert "s a step" in outcome.out and "measuring 3 steps" in outcome.err


def everything_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def clock_of_tokens(monkeypatch):
    """For the measuring, a second passes for each token that the model learns from: how fast this machine is says nothing of what is timed."""
    from transformers import LlamaForCausalLM

    seen, forward = [0], LlamaForCausalLM.forward

    def counted(self, *args, **kwargs):
        if self.training:
            seen[0] += int(kwargs["attention_mask"].sum())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    monkeypatch.setattr(measure_steps, "time", SimpleNamespace(perf_counter=lambda: float(seen[0])))
    return seen


@pytest.mark.slow
@cases("more", [[], ["trainer.gradient_accumulation_steps=3"], ["trainer.per_device_train_batch_size=1"]])
def test_a_step_is_timed_by_the_trainings_own_loop(planned, cli, llama, on_tiny, clock_of_tokens, more):
    steps = ["trainer.max_steps=30", "trainer.save_strategy=no", *more]
    _, plan = planned(*steps, "action.measure_steps=10")
    before = clock_of_tokens[0]
    assert cli(*on_tiny(llama), *steps).code == 0
    assert plan["measured"]["step"] * 30 == pytest.approx(clock_of_tokens[0] - before, rel=0.05)


def test_what_is_measured_is_what_was_asked_for(planned):
    _, plan = planned("action.evaluate_before=false")
    assert "before" in plan["parts"] and plan["parts"]["before"] == 0


def test_epochs_become_steps_once_rows_are_counted(planned):
    epochs = ["trainer=epochs", "trainer.gradient_accumulation_steps=2", "trainer.num_train_epochs=3"]
    outcome, plan = planned(*epochs, "action.measure_steps=0")
    assert plan["steps"] is None and "unknown until rows are counted; 8 rows a step" in outcome.out
    outcome, plan = planned(*epochs, "action.measure_steps=1")
    assert (
        plan["rows"] == 32 and plan["steps"] == 12 and "12 steps × 8 rows = 96 rows (3.00 epochs of 32)" in outcome.out
    )


@pytest.mark.slow
@cases("method", ["ia3", "vera", "none"])
def test_another_method_is_counted_on_the_adapted_base(planned, cli, llama, on_tiny, method):
    guess, plan = planned(f"lora={method}", "action.measure_steps=0")
    assert plan["exact"] == (method == "none") == ("about 1" not in guess.out.splitlines()[0])
    _, plan = planned(f"lora={method}", "action.measure_steps=1")
    real = cli(*on_tiny(llama), f"lora={method}", *TINY_STEPS).record()
    assert plan["exact"] and plan["trained"] == real["trainable_parameters"]


def test_what_will_not_fit_is_said_with_what_to_type_and_not_tried(planned):
    outcome, plan = planned("trainer.per_device_train_batch_size=2097152")
    assert plan["memory"]["peak"] > plan["free"] and plan["measured"] is None
    assert "will not fit: " in outcome.out and "; type trainer.per_device_train_batch_size=" in outcome.out
    size = outcome.out.partition("trainer.per_device_train_batch_size=")[2].split()[0]
    outcome, plan = planned(f"trainer.per_device_train_batch_size={size}", "action.measure_steps=0")
    assert "fits: " in outcome.out


def test_what_never_fits_wants_another_model_or_machine(planned):
    outcome, _ = planned("lora.r=100000000")
    assert "; choose a smaller model, or a machine with more memory" in outcome.out


@pytest.mark.slow
def test_processes_are_planned_each(planned):
    outcome, plan = planned("device=ddp", "device.type=cpu", "device.num_processes=2", "action.measure_steps=1")
    assert plan["processes"] == 2 and "for each of 2 processes" in outcome.out and "60 steps × 8 rows" in outcome.out


def test_a_run_that_is_to_be_continued_is_planned_whole(planned, cli, llama, on_tiny, tmp_path):
    outcome, _ = planned("action.resume=auto", "action.measure_steps=1")
    assert "note      for the whole training" in outcome.out


def test_what_training_would_refuse_its_plan_refuses(cli, tmp_path, trained, llama, on_tiny):
    typed = [*on_tiny(llama), "action=plan", f"adapter={trained}", "lora.r=16"]
    check_failed(cli, tmp_path, typed, ["lora.r=16", "has 8", "omit it"])
