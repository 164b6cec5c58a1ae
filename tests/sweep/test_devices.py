"""Groups spread over devices of one machine. CPUs serve as devices: the processes, their ends and their resumptions are real."""

import json
import os
import subprocess
import sys

import clusters
import psutil
import pytest
from cases import cases
from conftest import TINY_STEPS, subprocess_cli
from faults import check_refused, instead
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from peftrun.composition.spec import build_spec
from peftrun.config import paths
from peftrun.planning.joint_memory import Limits
from peftrun.sweep import cluster, devices, groups, planner, spread
from peftrun.sweep.cells import Cell

ON = "hydra/launcher=shared_base"
TWO = [ON, "hydra.launcher.devices=2"]
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def planned():
    """Cells of overrides → (cells, device) of the parts into which their groups are cut, in the order in which they start."""

    def plan(rows, names, seconds=lambda _: None):
        specs = [build_spec(compose("config", overrides=["device=cpu", *row])) for row in rows]
        cells = [Cell([number], [], {}, spec, id=str(number)) for number, spec in enumerate(specs)]
        parts = spread.spread_groups(groups.group_cells(cells), names, seconds)
        return [(" ".join(cell.id for cell in part.cells), part.device) for part in parts]

    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        yield plan


def test_groups_are_cut_where_that_shortens_the_whole(planned):
    long, gpt2, dora = "trainer.max_steps=600", "model=gpt2", "lora=dora"
    alike = [[f"seed={seed}"] for seed in range(6)]
    assert planned(alike, ["a"]) == [("0 1 2 3 4 5", "a")]
    assert planned(alike, ["a", "b"]) == [("0 1 2", "a"), ("3 4 5", "b")]
    assert planned(alike, ["a", "b", "c", "d"]) == [("0 1", "a"), ("2 3", "b"), ("4 5", "c")]
    assert planned(alike, [*"abcdefgh"]) == [(str(cell), "abcdef"[cell]) for cell in range(6)]
    two = [*alike[:2], *([*row, gpt2] for row in alike[:2])]
    assert planned(two, ["a", "b"]) == [("0 1", "a"), ("2 3", "b")]
    assert planned([["seed=1", long], ["seed=2", "trainer.max_steps=4"]], ["a", "b"]) == [("0 1", "a")]
    three = [[*row, *more] for more in ([], [gpt2], [gpt2, "model.attn_implementation=eager"]) for row in alike[:4]]
    assert planned(three, ["a", "b"]) == [("0 1 2 3", "a"), ("4 5 6 7", "b"), ("8 9", "a"), ("10 11", "b")]
    by_rows = [["seed=1"], ["seed=2", "task.max_length=100"], ["seed=3"], ["seed=4", "task.max_length=100"]]
    assert {cells for cells, _ in planned(by_rows, ["a", "b"])} == {"0 2", "1 3"}
    assert planned([[dora, "seed=1"], [dora, "seed=2", long]], ["a", "b"]) == [("1", "a"), ("0", "b")]
    # Where times are known the start of a worker counts: a short cell waits for the device, a long one does not.
    assert (
        len(planned(alike[:2], ["a", "b"], lambda _: 0.1)) == 1
        and len(planned(alike[:2], ["a", "b"], lambda _: 60)) == 2
    )


def test_a_worker_has_its_device_and_its_share_of_the_memory(llama, on_tiny, monkeypatch):
    assert devices.select_device("CUDA_VISIBLE_DEVICES", 2, {}) == {"CUDA_VISIBLE_DEVICES": "2"}
    seen = {"CUDA_VISIBLE_DEVICES": "5, GPU-3f,MIG-7", "ZE_AFFINITY_MASK": ""}
    assert devices.select_device("CUDA_VISIBLE_DEVICES", 1, seen) == {"CUDA_VISIBLE_DEVICES": "GPU-3f"}
    assert devices.select_device("ZE_AFFINITY_MASK", 1, seen) == {"ZE_AFFINITY_MASK": "1"}
    amd = {"HIP_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "3"}
    assert devices.select_device("HIP_VISIBLE_DEVICES", 0, {"CUDA_VISIBLE_DEVICES": "3,4"}) == amd
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        spec = build_spec(compose("config", overrides=on_tiny(llama)))
    cells = [Cell([number], [], {}, spec, id=str(number)) for number in range(4)]
    found, whole = groups.group_cells(cells), Limits().now(spec).free
    plan = planner.plan_sweep(found, Limits(), None, ["a", "b", "c"])
    assert [len(wave.cells) for wave in plan.waves] == [2, 2] and [group.device for group in plan.groups] == ["a", "b"]
    assert plan.allowed.now(spec).free == pytest.approx(whole / 2, rel=0.1)


@cases(
    "args, parts",
    [
        (["hydra.launcher.devices=0"], ["devices=0", "devices=auto"]),
        (["hydra.launcher.devices=true"], ["devices=true", "[0,2]"]),
        (["hydra.launcher.devices=[]"], ["devices=[]", "[0,2]"]),
        (["hydra.launcher.devices=[1,1]"], ["devices=[1,1]", "different GPUs"]),
        (["hydra.launcher.devices=[0,2]"], ["devices=[0,2]", "on the CPU", "type hydra.launcher.devices=2"]),
        (["hydra.launcher.devices=2", "device.type=cpu,auto"], ["device.type=auto,cpu", "devices=null"]),
        (["hydra.launcher.devices=2", "device=ddp"], ["device.strategy=ddp", "device=auto", "devices=null"]),
        (["hydra.launcher.devices=640", "device=cuda"], ["devices=640: torch finds", "cuda device"]),
        (
            ["hydra.launcher.devices=2", "hydra.launcher.halving={min_steps: 2, factor: 2}"],
            ["halving=", "halving=null"],
        ),
        (["hydra.launcher.devices=2", "hydra/launcher=shared_base_slurm"], ["devices=2", "hydra/launcher=shared_base"]),
        (["hydra.launcher.devices=2", "hydra.launcher.max_retries=-1"], ["max_retries=-1", "at least 0"]),
    ],
)
def test_what_cannot_be_spread_is_told_in_one_line(cli, tmp_path, llama, on_tiny, args, parts):
    check_refused(cli, tmp_path, instead(["-m", *on_tiny(llama), "seed=1,2", ON], args), parts)


@pytest.mark.slow
def test_cells_on_two_workers_are_those_of_one_process(cli, tmp_path, llama, gpt2, on_tiny):
    command = ["-m", *on_tiny(f"{llama},{gpt2}"), *TINY_STEPS, "lora.lora_dropout=0.1", "seed=1,2"]
    plan = cli(*command, *TWO, "action=plan")
    assert plan.code == 0 and "cpu:0" in plan.out and "cpu:1" in plan.out and not list(tmp_path.iterdir())
    runs = {}
    for name, launcher in {"one": [ON], "two": TWO, "auto": [ON, "hydra.launcher.devices=auto"]}.items():
        (tmp_path / name).mkdir()
        done = subprocess_cli(tmp_path / name, *command, *launcher, CUDA_VISIBLE_DEVICES="")
        assert done.code == 0, done.err
        runs[name] = {path.name: path for path in done.run_dir.parent.iterdir() if (path / ADAPTER).is_file()}
        assert "4 completed" in done.out and (done.run_dir.parent / ".workers").is_dir() == (name == "two")
    assert len(runs["one"]) == 4 and runs["one"].keys() == runs["two"].keys() == runs["auto"].keys()
    for cell, path in runs["one"].items():
        assert (path / ADAPTER).read_bytes() == (runs["two"][cell] / ADAPTER).read_bytes(), cell
    pids = {name: {read_record(path)["pid"] for path in paths.values()} for name, paths in runs.items()}
    assert [len(pids[name]) for name in ("one", "two", "auto")] == [1, 2, 1]


@pytest.mark.slow
def test_a_group_that_is_cut_trains_the_same_adapters_with_half_of_the_cores_each(tmp_path, llama, on_tiny):
    command = ["-m", *on_tiny(llama), *TINY_STEPS, "lora.r=2,4", "seed=1,2"]
    runs = []
    for name, launcher in {"one": [ON], "two": TWO}.items():
        (tmp_path / name).mkdir()
        environment = {"OMP_NUM_THREADS": "1"} if name == "one" else {}
        done = subprocess.run(
            [sys.executable, "-m", "peftrun", *command, *launcher], cwd=tmp_path / name, capture_output=True, text=True, check=False,
            env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        runs.append(
            {path.parent.name: path.parent for path in (tmp_path / name).glob("outputs/sweeps/*/*/record.json")}
        )
    one, two = runs
    assert len(one) == 4 and one.keys() == two.keys()
    for cell, path in one.items():
        apart = [load_file(folder / ADAPTER) for folder in (path, two[cell])]
        for key, tensor in apart[0].items():
            assert (tensor - apart[1][key]).norm() <= 1e-4 * tensor.norm(), (cell, key)
    found = [read_record(path) for path in two.values()]
    assert len({record["pid"] for record in found}) == 2
    assert {record["joint_training"]["cells"] for record in found} == {2}
    assert {record["numerics"]["threads"] for record in found} == {max(1, (os.cpu_count() or 1) // 2)}


def read_record(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_or_fails_its_cells_alone(llama, on_tiny, tmp_path):
    for name, retries in {"replaced": 2, "given up": 0}.items():
        (tmp_path / name).mkdir()
        # Cells of DoRA are each a group of their own.
        args = [*on_tiny(llama), "lora=dora", *TWO, f"hydra.launcher.max_retries={retries}"]
        done = clusters.killed_once(tmp_path / name, *args)
        if retries:
            clusters.check_completed(tmp_path / name, done)
            continue
        assert done.returncode == 1 and "given up, 1 cell not done" in done.stderr
        found = clusters.records(tmp_path / name)
        assert found[clusters.SHORT][1]["status"] == "completed" and found[clusters.LONG][1]["status"] == "failed"
        assert "killed by SIGKILL" in found[clusters.LONG][1]["error"]
        again = subprocess_cli(tmp_path / name, "-m", *clusters.GRID, *args)
        assert again.code == 0, again.err
        _, record = clusters.records(tmp_path / name)[clusters.LONG]
        assert record["status"] == "completed" and "checkpoint-" in record["resumed_from"]


@pytest.mark.slow
def test_no_worker_outlives_its_command(cli, llama, on_tiny, tmp_path, monkeypatch):
    args = ["-m", *on_tiny(llama), "lora=dora", *clusters.GRID, *TWO]
    clusters.check_interrupted(tmp_path / "interrupted", *args)
    for name in ("killed", "hanging"):
        where = tmp_path / name
        where.mkdir()
        with (where / "err.txt").open("w") as err:
            command = [sys.executable, "-m", "peftrun", *args]
            sweep = subprocess.Popen(command, cwd=where, stdout=err, stderr=err, stdin=subprocess.DEVNULL)
            worker = psutil.Process(clusters.training(where, sweep))
            if name == "hanging":
                worker.suspend()
            sweep.kill()
            sweep.wait()
        if name == "killed":
            psutil.wait_procs([worker], timeout=30)
            assert not is_running(worker) and clusters.records(where)[clusters.LONG][1]["status"] == "interrupted"
    assert is_running(worker)
    monkeypatch.chdir(where)
    monkeypatch.setattr(cluster, "STOPPING", 1.0)  # a process that is suspended ends only if it is killed
    again = cli(*args)
    assert again.code == 0 and "1 job of an earlier launch still runs" in again.err, again.err
    assert not is_running(worker)
    assert {record["status"] for _, record in clusters.records(where).values()} == {"completed"}


def is_running(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
