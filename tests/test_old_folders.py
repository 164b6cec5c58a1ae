"""A run folder, a sweep folder and a team package, as version 0.1.0 left them before its modules and keys were renamed: `fixtures/v0_1_0`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftrun.artifacts import records, run_overrides
from peftrun.config import migrations
from peftrun.config import values as config
from peftrun.system import environment

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
ON_BASE = ["model=pretrained", "model.name_or_path=base", "device=cpu", "device.dtype=float32"]
FEW_STEPS = ["trainer.logging_steps=1", "trainer.save_steps=2", "action.samples=0"]
SWEEP = [
    "-m", "task=instruction", "task.data.path=rows.jsonl", "task.data.eval_rows=8", "task.max_length=64", "lora.r=2,4", "trainer.max_steps=2",
    "trainer.warmup_steps=0", "trainer.learning_rate=1e-2", *ON_BASE, *FEW_STEPS, "hydra.sweep.dir=sweep",
]  # fmt: skip


def has_their_cpu(old: Path) -> bool:
    """Whether torch takes the same kernels here as on the machine that made the folders: then bytes are equal, else figures nearly."""
    then = records.read_record(old / "run")["environment"]["cpu"]["flags"]
    return then == environment.describe_environment()["cpu"]["flags"]


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.slow
def test_they_are_replayed_listed_and_checked(old, cli, monkeypatch):
    monkeypatch.chdir(old)
    replayed = cli("action=replay", "run=run")
    assert replayed.code == 0, replayed.out + replayed.err
    assert replayed.record()["replay"]["verdict"] == ("identical" if has_their_cpu(old) else "equal within tolerance")
    assert replayed.err.count("keys that were renamed since that version: task.kind is task.type, ") == 1
    drifted = cli("action=replay", "run=run", "env=check")
    assert "action.env is called action.check_only" in drifted.err and "config, drifted" not in drifted.out, drifted.out
    cell = next(path.name for path in (old / "sweep").iterdir() if (path / "record.json").is_file())
    listed = cli("action=list", "roots=[run, sweep]", "where='task.data.eval_rows=8 and samples<1'", "sort=task.kind")
    assert listed.code == 0 and "run" in listed.out and cell in listed.out, listed.out + listed.err
    for old_key in ("task.data.eval_rows", "action.samples", "action.roots", "task.kind"):
        assert listed.err.count(f"{old_key} is called {migrations.RENAMED[old_key][0]} since") == 1, listed.err
    checked = cli("--config-dir", "team", "action=check")
    assert checked.code == 0, checked.out + checked.err
    for file, old_keys in {
        "team/task/parity.yaml": ("task.prompt", "task.completion", "task.data.eval_rows", "task.data.holdout"),
        "team/experiment/parity.yaml": ("slots", "template.slots"),
    }.items():
        lines = [line for line in checked.out.splitlines() if file in line and " is called " in line]
        assert len(lines) == len(old_keys) and all(any(f" {key} is" in line for line in lines) for key in old_keys)
    again = cli("action=reload", "adapter=run", "action.evaluate=false")
    assert again.code == 0, again.err


@pytest.mark.slow
def test_they_are_run_again_by_the_commands_that_made_them(old, cli, monkeypatch):
    monkeypatch.chdir(old)
    record = json.loads((old / "run/record.json").read_text())
    run = cli(*record["command"][1:-1], "hydra.run.dir=again")
    assert run.code == 0, run.err
    for old_key in ("slots", "action.samples", "task.prompt", "task.data.holdout", "template.slots"):
        assert run.err.count(f"{old_key} is called {migrations.RENAMED[old_key][0]} since") == 1, run.err
    new = json.loads((old / "again/record.json").read_text())
    if has_their_cpu(old):
        # peftrun.json's keys have other names now
        of_adapter = {name for name in new["artifacts"] if not name.endswith("peftrun.json")}
        assert len(of_adapter) == 2 and all(new["artifacts"][name] == record["artifacts"][name] for name in of_adapter)
        assert new["metrics"] == record["metrics"]
    was, now = (load_file(old / run / "adapter" / "adapter_model.safetensors") for run in ("run", "again"))
    torch.testing.assert_close(now, was, rtol=0, atol=1e-6)
    then = migrations.upgrade_values(config.read_values(OLD / "run/config.yaml"))[0]
    then["trainer"]["use_liger_kernel"] = None  # the default since then; the same on a CPU
    assert config.read_values(old / "again/config.yaml") == then
    assert run_overrides.read_overrides(old / "run") == run_overrides.read_overrides(old / "again")
    compared = cli("action=compare", "runs=[run, again]").out
    differing = compared.partition("\nconfig\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in differing] == ["trainer.use_liger_kernel"], compared
    explained = cli("action=explain", "run=again")
    assert "params.rows=rows.jsonl" in explained.out and "task/parity.yaml:6 in " in explained.out, explained.out
    done = cli(*SWEEP)
    assert done.code == 0 and "continuing sweep: 2 of 2 cells are done" in done.err, done.err
    more = cli(*SWEEP[:5], "lora.r=2,8", *SWEEP[6:])
    assert more.code == 0 and "continuing sweep: 1 of 2 cells are done" in more.err, more.err


def test_records_are_read_under_todays_names(old, cli):
    record = records.read_record(old / "run")
    assert record["numerics"] and "unused_keys" in record and not records.RENAMED.keys() & record.keys()
    explained = json.loads(cli("action=explain", f"run={old / 'run'}", "format=json").out)
    assert explained["unused_keys"]
    inspected = cli("action=inspect", f"adapter={old / 'run'}").record()["inspect"]["default"]
    assert inspected["provenance"]["untrained"] is False
