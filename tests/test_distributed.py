"""Two processes on the CPU: what they learn together is what one learns alone, and it is saved whole."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import cli_here, jsonl
from faults import check_refused
from safetensors.torch import load_file

STEPS = ["trainer.max_steps=6", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def together(llama, on_tiny):
    """Half the batch for each of two processes. (float32, as ever on the tiny models.)"""
    return [*on_tiny(llama), *STEPS, "trainer.per_device_train_batch_size=2"]


@pytest.fixture(scope="module")
def alone(where, llama, on_tiny):
    run = cli_here(where, *on_tiny(llama), *STEPS, "trainer.per_device_train_batch_size=4")
    assert run.code == 0, run.err
    return run


def on(strategy):
    return [f"device={strategy}", "device.type=cpu", "device.dtype=float32"]


def adapter(run):
    return load_file(run.run_dir / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_same_batch(where, together, alone):
    run = cli_here(where, *together, *on("ddp"))
    assert run.code == 0, run.err
    record, one = run.record(), alone.record()
    assert record["spread"] == {"strategy": "ddp", "processes": 2, "machines": 1} and "2 processes" in record["device"]
    ours, theirs = adapter(run), adapter(alone)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=2e-5, rtol=1e-4)
    assert record["metrics"]["after"]["loss"] == pytest.approx(one["metrics"]["after"]["loss"], rel=1e-4)
    assert not list(run.run_dir.glob("*.log")) and not (run.run_dir / "outcome.json").exists()
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sharded_weights_are_saved_whole(where, together, alone):
    run = cli_here(where, *together, *on("fsdp"), "trainer.save_strategy=no")
    assert run.code == 0, run.err
    ours, theirs = adapter(run), adapter(alone)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=2e-5, rtol=1e-4)
    again = cli_here(where, *together, "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] < 1e-5


@pytest.mark.slow
def test_accumulated_batches_are_averaged_over_tokens_of_all_processes(where, together):
    """Also where the answers are most of one process's batch, and little of the other's."""
    answers = [" ".join(["yes"] * (1 + n % 5 * 6)) for n in range(40)]
    rows = jsonl(where / "uneven.jsonl", [{"prompt": f"{n}?", "completion": text} for n, text in enumerate(answers)])
    measured = ["task.data.num_validation_rows=8", "trainer.eval_strategy=steps", "trainer.eval_steps=3", "trainer.per_device_eval_batch_size=2"]  # fmt: skip
    own = [*together, f"task.data.path={rows}", *measured]
    run = cli_here(where, *own, *on("ddp"), *batches(1, 2))
    one = cli_here(where, *own, *batches(4, 1))
    assert run.code == one.code == 0, run.err + one.err
    assert logged(run, "loss") == pytest.approx(logged(one, "loss"), rel=1e-4) and len(logged(run, "loss")) == 6
    assert logged(run, "eval_loss") == pytest.approx(logged(one, "eval_loss"), rel=1e-4)


def batches(size, accumulated):
    return [f"trainer.per_device_train_batch_size={size}", f"trainer.gradient_accumulation_steps={accumulated}"]


def logged(run, key):
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.slow
def test_resumed_is_uninterrupted(where, together):
    given = [*together, *on("ddp"), "lora.lora_dropout=0.1", "trainer.lr_scheduler_type=constant"]
    whole = cli_here(where, *given, "hydra.run.dir=outputs/train/whole")
    assert whole.code == 0, whole.err
    torn, weights = where / "outputs/train/torn", "adapter/adapter_model.safetensors"
    shutil.copytree(whole.run_dir, torn)
    (torn / "record.json").write_text(json.dumps(whole.record() | {"status": "running"}))
    for gone in ("adapter", "checkpoints/checkpoint-6"):  # killed after its last step, and before it
        shutil.rmtree(torn / gone)
        name = f"outputs/train/without-{Path(gone).name}"
        resumed = cli_here(where, *given, "action.resume=outputs/train/torn", f"hydra.run.dir={name}")
        assert resumed.code == 0, resumed.err
        assert (whole.run_dir / weights).read_bytes() == (where / name / weights).read_bytes()


@pytest.mark.slow
def test_a_fault_in_the_workers_is_one_line(where, together):
    run = cli_here(where, *together, *on("ddp"), "lora.target_modules=[nosuch]")
    assert run.code == 1 and "Traceback" not in run.err
    assert run.err.count("lora.target_modules=nosuch") == 1
    assert run.run_dir is None


@pytest.mark.slow
def test_an_interrupt_ends_every_process(where, together):
    started = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *together, *on("ddp"), "trainer.max_steps=100000", "hydra.run.dir=outputs/train/long"],
        cwd=where, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = where / "outputs/train/long/metrics.jsonl"
    deadline = time.time() + 400
    while not metrics.is_file() and time.time() < deadline:
        time.sleep(0.2)
    started.send_signal(signal.SIGTERM)
    started.wait(timeout=60)
    assert json.loads((metrics.parent / "record.json").read_text())["status"] == "interrupted"
    time.sleep(1)
    left = subprocess.run(
        ["pgrep", "-f", "outputs/train/long"], capture_output=True, text=True, check=False
    ).stdout.split()
    assert not left


def test_deepspeed_says_what_it_lacks(cli, tmp_path, llama, on_tiny):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    check_refused(
        cli, tmp_path, [*given, "device=deepspeed"], ["pip install deepspeed"], ["device.deepspeed_config is not set"]
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["device.num_processes=2"], "device.num_processes=2: needs device.strategy"),
        (["device=ddp", "device.num_processes=1"], "device.num_processes=1: device.strategy=ddp needs"),
        (["device=ddp", "action=evaluate"], "action=evaluate runs in one process"),
        (["device=ddp", "device.num_machines=2"], "device.main_process_ip is not set"),
        (["device=ddp", "device.machine_rank=3"], "device.machine_rank=3: must be below"),
        (["device=fsdp"], "trainer.save_strategy=steps: "),
        (["device=fsdp", "trainer.save_strategy=no", "lora=none"], "lora=none: needs whole weights"),
    ],
)
def test_what_cannot_be_spread_is_refused(cli, tmp_path, llama, on_tiny, overrides, said):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    check_refused(cli, tmp_path, [*given, *overrides], [said])
