"""Each tracker is told the whole run, and nothing else of the run is another for it."""

import json
import re

import pytest
import told
from cases import cases
from conftest import TINY_STEPS, cli_here
from faults import check_refused

from peftrun.io import atomic_files

pytestmark = pytest.mark.slow

STEPS = [*TINY_STEPS, "trainer.eval_strategy=steps", "trainer.eval_steps=2", "task.data.num_validation_rows=4"]


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One folder for all runs of a tracker: MLflow takes seconds to make one."""
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(scope="session")
def asked(store):
    def overrides(kind: str) -> list[str]:
        return [f"tracker={kind}", f"tracker.folder={store / kind}"]

    return overrides


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(where, llama, on_tiny):
    return cli_here(where, *on_tiny(llama), *STEPS)


@pytest.fixture(scope="module", params=told.KINDS)
def tracked(request, where, llama, on_tiny, asked):
    more = [] if request.param == "tensorboard" else ["tracker.log_adapter=true", "tracker.project=ours"]
    return request.param, cli_here(
        where, *on_tiny(llama), *STEPS, *asked(request.param), *more, "tracker.run_name=first"
    )


def same(kind, found, wanted):
    """The curves of a tracker are those of metrics.jsonl; TensorBoard keeps 32 bits, Weights & Biases' summary has no step."""
    assert {name for name in found if not name.startswith("run/")} == wanted.keys()
    for name, curve in wanted.items():
        steps, values = zip(*curve, strict=True)
        told_steps, told_values = zip(*found[name], strict=True)
        assert told_values == (pytest.approx(values, rel=1e-6) if kind == "tensorboard" else values), name
        assert told_steps in (steps, (-1,)), name


def test_a_run_is_told_as_it_was(tracked, store):
    kind, run = tracked
    assert run.code == 0, run.err
    assert "warning" not in run.err
    (row,) = [line for line in run.out.splitlines() if line.startswith("tracker ")]
    assert f"{kind}: {store / kind} (docs/trackers.md" in row
    found = told.read(kind, run.run_dir, store / kind)
    same(kind, found.curves, told.expected(run.run_dir))
    assert "eval/loss" in found.curves and "before/loss" in found.curves
    assert found.status in ("completed", "FINISHED") and found.name == "first" and found.group is None
    assert str(found.config["lora.r"]) == "8" and str(found.config["trainer.max_steps"]) == "4"
    assert "record.json" in found.files
    if kind != "tensorboard":
        assert any(name.startswith("adapter") for name in found.files)
        assert "config.yaml" in found.files


def test_what_is_trained_and_recorded_is_the_same(tracked, plain):
    _, run = tracked
    digests = [one.record()["artifacts"] for one in (run, plain)]
    assert digests[0] == digests[1] and any(name.endswith(".safetensors") for name in digests[0])
    more = {path.name for path in run.run_dir.iterdir()} - {path.name for path in plain.run_dir.iterdir()}
    assert more == {"tracker.json"}
    assert not [key for key in run.record()["unused_keys"] if key.startswith("tracker")]


def test_a_replay_is_not_told_and_its_verdict_is_the_same(tracked, where, store):
    kind, run = tracked
    if kind != "mlflow":
        pytest.skip("one stands for all")
    before = (store / kind / "mlflow.db").read_bytes()
    again = cli_here(where, "action=replay", f"run={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["replay"]["verdict"] == "identical"
    assert not list(again.run_dir.rglob("tracker.json")) and (store / kind / "mlflow.db").read_bytes() == before


@cases("kind", told.KINDS)
def test_a_continued_run_goes_on_in_its_tracker(kind, where, llama, on_tiny, asked, store):
    given = [*on_tiny(llama), *STEPS, *asked(kind), "seed=3"]
    given += [] if kind == "tensorboard" else ["tracker.project=continued"]
    first = cli_here(where, *given)
    assert first.code == 0, first.err
    record = first.run_dir / "record.json"
    record.write_text(record.read_text().replace('"completed"', '"failed"'))
    (first.run_dir / "checkpoints/checkpoint-4/complete").unlink()  # as if it had been killed after step 3
    again = cli_here(where, *given, f"action.resume={first.run_dir}")
    assert again.code == 0, again.err
    assert told.state(again.run_dir) == told.state(first.run_dir)
    found = told.read(kind, again.run_dir, store / kind).curves["train/loss"]
    wanted = told.expected(again.run_dir)["train/loss"]
    if kind == "wandb":  # the server drops a step that it has; the files hold it twice
        found = sorted(dict(found).items())
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)


@cases("kind", told.KINDS)
def test_cells_that_train_together_do_not_mix(kind, where, llama, on_tiny, asked, store):
    sweep = where / f"sweep-{kind}"
    given = ["hydra/launcher=shared_base", "lora.r=2,4", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    given += [] if kind == "tensorboard" else ["tracker.project=cells"]
    run = cli_here(where, "-m", *on_tiny(llama), *STEPS, *asked(kind), *given)
    assert run.code == 0, run.err
    cells = [path.parent for path in sweep.glob("*/record.json")]
    assert len(cells) == 4 and all(atomic_files.read_json(cell / "record.json").get("joint_training") for cell in cells)
    finals = set()
    for cell in cells:
        found = told.read(kind, cell, store / kind)
        same(kind, found.curves, told.expected(cell))
        assert found.name == cell.name
        if kind == "tensorboard":
            assert told.state(cell)["id"] == str(store / kind / sweep.name / cell.name)
        else:
            assert found.group == sweep.name
        finals.add(found.curves["train/loss"][-1][1])
    assert len(finals) == 4


@cases("kind", told.KINDS)
def test_a_run_that_fails_is_told_so(kind, where, llama, on_tiny, asked, store):
    more = [] if kind == "tensorboard" else ["tracker.project=failing"]
    run = cli_here(where, *on_tiny(llama), *TINY_STEPS, *asked(kind), *more, "trainer.learning_rate=1e30")
    assert run.code == 1 and run.record()["status"] == "failed", run.err
    found = told.read(kind, run.run_dir, store / kind)
    assert found.status in ("failed", "FAILED") and "record.json" in found.files
    assert "train/loss" in found.curves


def test_an_interrupted_run_is_told_so(where, store, tmp_path):
    import peftrun
    from peftrun import trackers

    spec = peftrun.load("tracker=mlflow", f"tracker.folder={store / 'mlflow'}").tracker
    trackers.start_tracking(spec, trackers.Run(tmp_path, "cut off", None, {"seed": 0}, []))
    trackers.log_metrics(tmp_path, {"step": 1, "loss": 2.0})
    record = {"status": "interrupted", "versions": {}}
    atomic_files.write_json(tmp_path / "record.json", record)
    trackers.end_tracking(tmp_path, record)
    assert told.read("mlflow", tmp_path, store / "mlflow").status == "KILLED"


def test_other_actions_say_that_no_tracker_is_told(where, llama, on_tiny):
    run = cli_here(where, *on_tiny(llama), "action=evaluate", "tracker=mlflow")
    assert run.code == 0, run.err
    assert "warning: tracker=mlflow, trainer.learning_rate=0.01 were set but not used by this run" in run.err
    assert not (where / "outputs/mlflow").exists() and not (run.run_dir / "tracker.json").exists()


def test_a_listing_says_so_too(cli):
    assert "warning: tracker=mlflow was set but not used by this run" in cli("action=list", "tracker=mlflow").err


@cases("kind", told.KINDS)
def test_a_folder_that_cannot_be_made_is_what_is_at_fault(where, llama, on_tiny, kind):
    run = cli_here(where, *on_tiny(llama), *STEPS, f"tracker={kind}", "tracker.folder=/proc/nope")
    assert run.code == 1
    assert "peftrun: tracker.folder=/proc/nope: cannot be" in run.err and "(No such file or directory)" in run.err


@cases("given, fragments", [
        (["tracker=mlflow", "tracker.uri=nowhere"], ["tracker.uri=nowhere", "is not the address", "tracker.uri=http://HOST:5000"]),
        (["tracker=mlflow", "tracker.uri=http://me:secret@host:1"], ["tracker.uri", "password", "MLFLOW_TRACKING_PASSWORD"]),
        (["tracker=mlflow", "tracker.folder=taken"], ["tracker.folder=taken", "is a file"]),
        (["tracker=wandb", "tracker.mode=online"], ["tracker.mode=online", "WANDB_API_KEY", "tracker.mode=offline"]),
        (["tracker=wandb", "tracker.mode=on"], ["tracker.mode=on"]),
        (["tracker=tensorboard", "tracker.uri=x"], ["tracker.uri"]),
        (["tracker=trackio", "tracker.project='a/b'"], ["tracker.project=a/b"]),
    ])  # fmt: skip
def test_what_cannot_be_is_refused(cli, tmp_path, monkeypatch, llama, on_tiny, given, fragments):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (tmp_path / "taken").write_text("")
    check_refused(cli, tmp_path, [*on_tiny(llama), *given], fragments)
    assert "secret" not in "".join(fragments)


def test_a_package_that_is_not_there_is_named(cli, tmp_path, monkeypatch, llama, on_tiny):
    monkeypatch.setattr("peftrun.system.packages.find_spec", lambda name: None)
    check_refused(
        cli, tmp_path, [*on_tiny(llama), "tracker=trackio"], ["tracker.name=trackio", "pip install 'peftrun[trackers]'"]
    )


def test_nothing_of_the_environment_is_kept(tracked, monkeypatch):
    """Keys are the libraries' own, from the environment: no file of a run holds one."""
    _, run = tracked
    text = "".join(path.read_text() for path in run.run_dir.glob("*.json*")) + (run.run_dir / "config.yaml").read_text()
    assert not re.search("api_key|password|token=", text, re.IGNORECASE)
    assert set(json.loads((run.run_dir / "tracker.json").read_text())) == {"name", "id", "run_name"}


@cases("kind", told.KINDS)
def test_a_run_of_two_processes_is_told_once(kind, tmp_path, llama, on_tiny, asked, store):
    """By the first of them; how it ended by the process that started them."""
    more = [] if kind == "tensorboard" else ["tracker.project=spread"]
    spread = [
        "device=ddp",
        "device.type=cpu",
        "device.dtype=float32",
        "device.num_processes=2",
        "trainer.per_device_train_batch_size=2",
    ]
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    run = cli_here(tmp_path, *given, *TINY_STEPS, *spread, *asked(kind), *more)
    assert run.code == 0, run.err
    found = told.read(kind, run.run_dir, store / kind)
    same(kind, found.curves, told.expected(run.run_dir))
    assert found.status in ("completed", "FINISHED")
