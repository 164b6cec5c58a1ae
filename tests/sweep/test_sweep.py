"""Sweeps on a tiny model: frozen, addressed by content, resumable; a cell that fails does so alone."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_STEPS, build_llama, cli_here, run_folders
from faults import check_refused, instead

ON = ["hydra/launcher=shared_base"]


def sweep_folder(where):
    (found,) = (where / "outputs" / "sweeps").iterdir()
    return found


def summary(where):
    return json.loads((sweep_folder(where) / "sweep.json").read_text())


def cells_by(where, key):
    return {cell["values"][key]: cell for cell in summary(where)["cells"]}


def state(cell):
    """What must not change in a cell that is done: bytes and times of every file."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(cell.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def tiny(llama, on_tiny):
    return ["-m", *on_tiny(llama), *TINY_STEPS, *ON]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, llama, on_tiny):
    """(folder, command, outcome) of a sweep of four cells."""
    where = tmp_path_factory.mktemp("swept")
    command = ["-m", *on_tiny(llama), *TINY_STEPS, *ON, "lora.r=2,4", "seed=1,2"]
    return where, command, cli_here(where, *command)


def test_a_sweep_leaves_a_run_folder_for_each_cell_and_a_summary(swept):
    where, _, outcome = swept
    assert outcome.code == 0, outcome.err
    found = summary(where)
    assert found["status"] == "completed" and found["axes"] == {"lora.r": [2, 4], "seed": [1, 2]}
    assert [cell["numbers"] for cell in found["cells"]] == [[0], [1], [2], [3]]
    for cell in found["cells"]:
        folder = sweep_folder(where) / cell["id"]
        assert {"config.yaml", "record.json", "metrics.jsonl", "adapter"} <= {path.name for path in folder.iterdir()}
        record = json.loads((folder / "record.json").read_text())
        assert record["status"] == "completed" and record["objective"] == record["metrics"]["after"]["loss"]
        assert cell["id"] in outcome.out and cell["command"].startswith("peftrun ")
    assert "4 completed" in outcome.out and "best   loss" in outcome.out


def test_the_same_command_again_touches_nothing_that_is_done(swept):
    where, command, _ = swept
    before = {path.name: state(path) for path in run_folders(where)}
    outcome = cli_here(where, *command)
    assert outcome.code == 0, outcome.err
    assert "4 of 4 cells are done" in outcome.err and "group 1" not in outcome.err
    assert {path.name: state(path) for path in run_folders(where)} == before
    assert {cell["how"] for cell in summary(where)["cells"]} == {"done before"}


def test_cells_are_run_again_once_their_rows_or_their_base_are_others(cli, tmp_path, data, on_tiny):
    rows, base = Path(shutil.copy(data, tmp_path / "rows.jsonl")), build_llama(tmp_path / "base")
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather"}]')
    own = [*TINY_STEPS, f"task.data.path={rows}", f"task.tools={tools}"]
    command = ["-m", *instead(on_tiny(base), own), *ON, "lora.r=2,4"]
    assert cli(*command).code == 0
    first = {cell["id"]: cell["objective"] for cell in summary(tmp_path)["cells"]}

    def edit_base_and_tools():
        tools.write_text('[{"name": "climate"}]')
        build_llama(base, seed=3)

    edits = {
        ("task.data.path=",): lambda: rows.write_text(rows.read_text().replace("even", "odd")),
        ("task.tools=", "the base's weights"): edit_base_and_tools,
    }
    for names, edit in edits.items():
        edit()
        again = cli(*command)
        told = again.err.partition("2 cells of 2 were made before these changed, and are run again: ")[2]
        assert again.code == 0 and all(name in told for name in names)
        found = {cell["id"]: cell["objective"] for cell in summary(tmp_path)["cells"]}
        assert found.keys() == first.keys() and all(found[one] != first[one] for one in found)
    assert "2 of 2 cells are done" in cli(*command).err
    assert len(list((sweep_folder(tmp_path) / "attempts").iterdir())) == 4


def test_added_cells_alone_are_run(swept):
    where, command, _ = swept
    before = {path.name: state(path) for path in run_folders(where)}
    outcome = cli_here(where, *command[:-2], "lora.r=2,4,6", "seed=1,2")
    assert outcome.code == 0, outcome.err
    assert "4 of 6 cells are done" in outcome.err and "group 1 of 1: 2 cells" in outcome.err
    after = {path.name: state(path) for path in run_folders(where)}
    assert len(after) == 6 and {name: after[name] for name in before} == before


def test_a_sweep_without_a_cell_in_common_has_a_folder_of_its_own(swept):
    where, command, _ = swept
    known = set((where / "outputs" / "sweeps").iterdir())
    outcome = cli_here(where, *command[:-2], "seed=7", "lora.r=3", "action=plan")
    assert outcome.code == 0 and "waiting" in outcome.out and "completed" not in outcome.out
    assert set((where / "outputs" / "sweeps").iterdir()) == known


@pytest.mark.slow
def test_a_poisoned_cell_fails_alone_and_is_tried_again(cli, tmp_path, tiny):
    grid = [*tiny, "lora.target_modules=[q_proj],[nosuch],[v_proj]", "lora.r=4"]
    outcome = cli(*grid)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    told = [line for line in outcome.err.splitlines() if line.startswith("peftrun: ")]
    assert (
        len(told) == 2 and "nosuch: matches no module" in told[0] and told[1].startswith("peftrun: 1 of 3 cells failed")
    )
    status = {str(key): cell["status"] for key, cell in cells_by_targets(tmp_path).items()}
    assert status == {"q_proj": "completed", "nosuch": "failed", "v_proj": "completed"}
    bad = sweep_folder(tmp_path) / cells_by_targets(tmp_path)["nosuch"]["id"]
    assert "nosuch" in json.loads((bad / "record.json").read_text())["error"]
    again = cli(*grid)
    assert again.code == 1 and "2 of 3 cells are done" in again.err
    assert [path.name for path in (sweep_folder(tmp_path) / "attempts").iterdir()] == [f"{bad.name}-1"]
    assert cells_by_targets(tmp_path)["nosuch"]["attempts"] == 2


def cells_by_targets(where):
    return {cell["values"]["lora.target_modules"][0]: cell for cell in summary(where)["cells"]}


@pytest.mark.slow
def test_a_cell_that_is_refused_leaves_its_reason_and_the_others_run(cli, tmp_path, tiny):
    outcome = cli(*tiny, "lora=lora,ia3", "lora.r=0,4")
    assert outcome.code == 1, outcome.out
    assert "lora.r=0: must be greater than or equal to 1" in outcome.err and "there is no such key" in outcome.err
    assert sorted(cell["status"] for cell in summary(tmp_path)["cells"]) == ["completed", "failed", "failed", "failed"]
    assert "3 of 4 cells failed" in outcome.err


@pytest.mark.slow
def test_where_every_cell_is_refused_nothing_is_written(cli, tmp_path, tiny):
    check_refused(cli, tmp_path, [*tiny, "lora.r=0,-1"], ["lora.r=0: must"], ["lora.r=-1: must"])
    check_refused(cli, tmp_path, [*tiny, "lora.rr=1,2"], ["lora.rr=1: there is no"], ["lora.rr=2: there is no"])


@pytest.mark.slow
def test_identical_cells_are_run_once_and_said_so(cli, tmp_path, tiny):
    outcome = cli(*tiny, "seed=1,1", "trainer.warmup_steps=0,0.0", "hydra.sweep.dir=here")
    assert outcome.code == 0, outcome.err
    assert "cells 0, 1, 2, 3 are identical after resolution" in outcome.err
    (cell,) = json.loads((tmp_path / "here" / "sweep.json").read_text())["cells"]
    assert cell["numbers"] == [0, 1, 2, 3] and len(run_folders(tmp_path)) == 0
    assert (tmp_path / "here" / cell["id"] / "adapter").is_dir()


@pytest.mark.slow
def test_batches_of_a_sweep_share_its_folder(cli, tmp_path, tiny):
    outcome = cli(*tiny, "seed=1,2,3", "hydra.sweeper.max_batch_size=2")
    assert outcome.code == 0, outcome.err
    assert [cell["numbers"] for cell in summary(tmp_path)["cells"]] == [[0], [1], [2]]
    assert [cell["group"] for cell in summary(tmp_path)["cells"]] == [1, 1, 2]


@pytest.mark.slow
def test_other_actions_run_one_after_another(cli, tmp_path, tiny, trained):
    plain = [word for word in tiny if word != "action.num_samples=0"]
    outcome = cli(*plain, "action=evaluate", f"adapter={trained}", "task.data.split_seed=1,2")
    assert outcome.code == 0, outcome.err
    assert {cell["how"] for cell in summary(tmp_path)["cells"]} == {"alone"}


def test_a_sweep_that_is_held_is_refused_by_name(cli, tmp_path, tiny):
    from peftrun.sweep import folder

    with folder.lock_folder(tmp_path / "held"):
        outcome = cli(*tiny, "seed=1,2", "hydra.sweep.dir=held")
    assert outcome.code == 1 and f"{tmp_path / 'held'}: another process runs this sweep" in outcome.err
    assert run_folders(tmp_path) == set()


def test_what_was_frozen_is_what_runs(cli, tmp_path, tiny):
    """A team's file is edited while the sweep stands still; the cells do not notice."""
    from peftrun.config import values as config
    from peftrun.sweep import run_cells

    (tmp_path / "team" / "lora").mkdir(parents=True)
    ours = tmp_path / "team" / "lora" / "ours.yaml"
    ours.write_text("# Ours.\n# peftrun lora=ours\ndefaults:\n  - lora\n  - _self_\n\nr: 3\n")
    grid = ["--config-dir", "team", *tiny, "lora=ours", "seed=1,2"]
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_cells, "run", lambda folders, *_: sent.extend(folders))
        outcome = cli(*grid)
    assert outcome.code == 1 and "did not finish, and left no reason" in outcome.err
    ours.write_text(ours.read_text().replace("r: 3", "r: 5"))
    run_cells.run(sent)
    for cell in sent:
        assert config.read_values(cell / "config.yaml")["lora"]["r"] == 3
        assert json.loads((cell / "adapter" / "adapter_config.json").read_text())["r"] == 3


def test_work_continues_from_the_checkpoint_of_the_attempt_that_came_furthest(cli, tmp_path, tiny):
    from peftrun.sweep import run_cells

    assert cli(*tiny, "seed=1", "lora.r=4,6").code == 0
    cell = sweep_folder(tmp_path) / summary(tmp_path)["cells"][0]["id"]
    whole = (cell / "adapter" / "adapter_model.safetensors").read_bytes()
    record = json.loads((cell / "record.json").read_text())
    (cell / "record.json").write_text(
        json.dumps(record | {"status": "running"})
    )  # as a kill after the last checkpoint leaves it
    run_cells.run([cell])
    attempt = sweep_folder(tmp_path) / "attempts" / f"{cell.name}-1"
    assert json.loads((cell / "record.json").read_text())["resumed_from"]
    assert (attempt / "checkpoints").is_dir() and (cell / "adapter" / "adapter_model.safetensors").read_bytes() == whole


def test_an_interrupted_sweep_says_so_of_each_cell_and_goes_on(cli, tmp_path, tiny, monkeypatch):
    """Ctrl-C in the last step of the second of three cells, which are trained one at a time."""
    from peftrun.training.callbacks import MetricsCallback

    grid, on_log = [*tiny, "hydra.launcher.max_cells=1", "seed=1,2,3"], MetricsCallback.on_log

    def log(self, args, state, control, **more):
        on_log(self, args, state, control, **more)
        if state.global_step == 4 and len(list(tmp_path.glob("outputs/sweeps/*/*/metrics.jsonl"))) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsCallback, "on_log", log)
        outcome = cli(*grid)
    assert outcome.code == 130 and summary(tmp_path)["status"] == "interrupted"
    assert [cell["status"] for cell in summary(tmp_path)["cells"]] == ["completed", "interrupted", "not started"]
    done, begun, waiting = (sweep_folder(tmp_path) / cell["id"] for cell in summary(tmp_path)["cells"])
    assert (
        not (waiting / "record.json").exists()
        and json.loads((begun / "record.json").read_text())["status"] == "interrupted"
    )
    before, again = state(done), cli(*grid)
    assert again.code == 0 and "1 of 3 cells are done" in again.err, again.err
    assert f"cell {begun.name} (seed=2): evaluation after training" in again.err and state(done) == before
    assert [cell["steps"] for cell in summary(tmp_path)["cells"]] == [4, 4, 4]
    for text in ("best   loss", "the mean of 3 seeds", "report outputs/", "peftrun action=reload adapter=outputs/"):
        assert text in again.out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(tmp_path, llama, on_tiny):
    steps = [*TINY_STEPS, "trainer.max_steps=12", "hydra.launcher.max_cells=1", *ON]
    command = ["-m", *on_tiny(llama), *steps, "lora.r=2,4,6", "seed=1"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert cli_here(tmp_path / "whole", *command).code == 0
    running = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *command], cwd=tmp_path / "killed", env=os.environ, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 400
    while not list((tmp_path / "killed").glob("outputs/sweeps/*/*/adapter")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = {path.parent: state(path.parent) for path in (tmp_path / "killed").glob("outputs/sweeps/*/*/record.json")
            if json.loads(path.read_text())["status"] == "completed"}  # fmt: skip
    outcome = cli_here(tmp_path / "killed", *command)
    assert outcome.code == 0, outcome.err
    assert {path: state(path) for path in done} == done
    cells = {where: cells_by(tmp_path / where, "lora.r") for where in ("whole", "killed")}
    for rank, cell in cells["whole"].items():
        other = cells["killed"][rank]
        assert (cell["id"], cell["objective"], cell["status"]) == (other["id"], other["objective"], "completed")


def test_a_launcher_that_there_is_not_is_answered_with_those_there_are(cli, tiny):
    outcome = cli("-m", "seed=1,2", "hydra/launcher=shared_bas")
    assert outcome.code == 1
    assert "there is no such launcher; launchers: basic, shared_base, shared_base_ray, shared_base_slurm" in outcome.err


def test_flags_may_follow_overrides(cli):
    first, between = cli("-m", "lora.r=2,4", "seed=3", "action=plan"), cli("lora.r=2,4", "-m", "seed=3", "action=plan")
    assert first.code == between.code == 0, between.err
    assert first.out == between.out and "lora.r=4" in first.out
