"""What a run reads of its config: noted truly, told where it was set in vain; and nothing that is shipped is dead."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import reading_paths
from cases import cases
from conftest import TINY_STEPS, cli_here, jsonl

import peftrun
from peftrun.composition.composer import Composer
from peftrun.config import paths, usage
from peftrun.config import values as config
from peftrun.config.schema import lora as lora_methods
from peftrun.config.schema import run as schema

COMPOSED = {"params", "template"}  # read by interpolation, while the config is composed


def test_a_tracked_run_is_the_run():
    spec = peftrun.load()
    watched = usage.track_reads(spec)
    assert watched == spec and spec == watched and watched == usage.track_reads(spec)
    assert isinstance(watched, schema.RunSpec) and isinstance(watched.lora, lora_methods.LoraSpec)
    assert repr(watched) == repr(spec) and watched != dataclasses.replace(spec, seed=1)
    for again in (pickle.loads(pickle.dumps(watched)), copy.deepcopy(watched), usage.strip_tracking(watched)):
        assert again == spec and type(again) is schema.RunSpec and type(again.task.data) is schema.DataSpec
    assert usage.list_read_keys(watched) == [], "comparing, showing and copying is no reading"
    assert type(spec) is schema.RunSpec and usage.list_unused_keys(spec) == [] == usage.list_read_keys(spec)


def test_a_value_is_read_by_name_with_its_group_or_from_a_copy():
    watched = usage.track_reads(peftrun.load())
    everything = set(config.flatten_keys(dataclasses.asdict(peftrun.load())))
    assert set(usage.list_unused_keys(watched)) == everything
    assert watched.lora.r == 8 and watched.task.data.labels
    assert usage.list_read_keys(watched) == ["lora.r", "task.data.labels"]
    other = dataclasses.replace(watched, task=dataclasses.replace(watched.task, max_length=7))
    assert usage.list_read_keys(watched) == ["lora.r", "task.data.labels"]
    assert other.task.max_length == 7
    dataclasses.asdict(watched.device)
    read = everything - set(usage.list_unused_keys(watched))
    devices = {key for key in everything if key.startswith("device.")}
    assert read == devices | {"lora.r", "task.max_length", "task.data.labels.0", "task.data.labels.1"}


def test_what_is_handed_to_a_library_is_read_but_for_what_is_ours_or_moot():
    watched = usage.track_reads(peftrun.load())
    handed = usage.collect_kwargs(watched.lora, ours=("method", "calibration_rows"), without_effect=("bias",))
    assert "bias" in handed and "method" not in handed
    unread = {key for key in usage.list_unused_keys(watched) if key.startswith("lora.")}
    assert unread == {"lora.method", "lora.calibration_rows", "lora.bias"}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("reads")


@pytest.fixture(scope="module")
def in_vain(where, llama, on_tiny):
    given = ["lora.calibration_rows=7", "task.max_new_tokens=9", "trainer.num_train_epochs=3", "action.num_samples=0"]
    return cli_here(where, *on_tiny(llama), *TINY_STEPS, *given)


def test_what_was_set_in_vain_is_told_in_one_line(in_vain):
    assert in_vain.code == 0, in_vain.err
    told = [line for line in in_vain.err.splitlines() if "not used by this run" in line]
    assert told == [
        "warning: lora.calibration_rows=7, task.max_new_tokens=9, trainer.num_train_epochs=3.0 were set but not used by this run"
    ]
    unread = in_vain.record()["unused_keys"]
    assert {
        "lora.calibration_rows",
        "task.max_new_tokens",
        "trainer.num_train_epochs",
        "device.main_process_port",
    } <= set(unread)
    assert not {"lora.r", "seed", "task.data.path", "trainer.learning_rate", "task.data.labels"} & set(unread)


def test_nothing_is_told_where_all_was_read_and_rows_that_were_kept_count(where, llama, on_tiny, in_vain):
    runs = [cli_here(where, *on_tiny(llama), *TINY_STEPS) for _ in range(2)]
    assert "using cached rows" in runs[1].err
    assert all("not used by this run" not in run.err for run in runs)
    assert runs[0].record()["unused_keys"] == runs[1].record()["unused_keys"]


def test_comparing_with_the_run_that_is_continued_is_no_reading(where, llama, on_tiny):
    first = cli_here(where, *on_tiny(llama), *TINY_STEPS, "lora.calibration_rows=9")
    record = first.run_dir / "record.json"
    record.write_text(record.read_text().replace('"completed"', '"failed"'))
    again = cli_here(where, *on_tiny(llama), *TINY_STEPS, "lora.calibration_rows=9", "action.resume=auto")
    assert again.code == 0 and "continuing" in again.err
    assert again.record()["unused_keys"] == first.record()["unused_keys"]
    assert "lora.calibration_rows=9 was set but not used by this run" in again.err


def test_other_actions_tell_what_was_typed_for_them_in_vain(where, in_vain):
    saved = config.read_values(in_vain.run_dir / "config.yaml")
    model = saved["model"]["name_or_path"]
    given = [
        "action=reload",
        f"adapter={in_vain.run_dir}",
        "action.evaluate=false",
        "model=pretrained",
        f"model.name_or_path={model}",
    ]
    run = cli_here(where, *given, "device=cpu", "device.dtype=float32", "lora.r=4")
    assert run.code == 0, run.err
    assert "warning: lora.r=4 was set but not used by this run" in run.err
    assert "lora.lora_alpha" in run.record()["unused_keys"]


def test_cells_share_what_was_read_for_one_of_them(where, llama, on_tiny):
    given = ["hydra/launcher=shared_base", "lora.r=4,8", "lora.calibration_rows=5", f"hydra.sweep.dir={where}/sweep"]
    run = cli_here(where, "-m", *on_tiny(llama), *TINY_STEPS, *given)
    assert run.code == 0, run.err
    records = [path for path in (where / "sweep").glob("*/record.json")]
    unread = [set(reads_of(path)) for path in records]
    assert len(unread) == 2 and unread[0] == unread[1]
    assert "lora.calibration_rows" in unread[0] and not {"task.data.path", "lora.r", "model.name_or_path"} & unread[0]
    assert run.err.count("lora.calibration_rows=5 was set but not used by this run") == 1


def reads_of(record):
    from peftrun.io import atomic_files

    return atomic_files.read_json(record)["unused_keys"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return reading_paths.bases(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def unread_of():
    """Experiment, or another path → what nothing read on it."""
    return {}


@pytest.mark.slow
@cases("experiment", paths.list_group_options("experiment"))
def test_an_experiment_sets_nothing_that_its_run_does_not_read(where, tiny, unread_of, experiment):
    run = cli_here(where, *reading_paths.overrides(experiment, tiny, where))
    assert run.code == 0, run.err
    unread = set(run.record()["unused_keys"])
    unread_of[experiment] = unread
    _, body = Composer().body(f"experiment/{experiment}")
    assert not unread & config.flatten_keys(body).keys()
    assert "not used by this run" not in run.err


@pytest.mark.slow
def test_every_key_is_read_on_some_path(where, tiny, unread_of, llama, on_tiny, in_vain):
    """Of those paths, and of a few that no experiment takes."""
    if not {*paths.list_group_options("experiment")} <= unread_of.keys():
        pytest.skip("asks for the paths of all experiments, which were not run")
    given, on_cpu = on_tiny(llama), ["device=cpu", "device.dtype=float32"]
    more = {
        "epochs": [*given, "trainer.max_steps=-1", "trainer.num_train_epochs=0.2", "trainer.warmup_steps=0", "trainer.eval_strategy=steps",
                   "trainer.eval_steps=1", "task.data.num_validation_rows=4"],
        "eva": [*given, *TINY_STEPS, "lora=eva", "lora.calibration_rows=8"],
        "reload": [*given, "action=reload", f"adapter={in_vain.run_dir}"],
        "package": ["model=pretrained", f"model.name_or_path={tiny['bert']}", "task=spanish_sentiment", *on_cpu, *TINY_STEPS],
        "lm_eval": [*given[:2], *on_cpu, "action=evaluate", "task=lm_eval", "task.lm_eval.tasks=[even]",
                    f"task.lm_eval.include_path={harness_task(where)}"],
        "hub": [*given, *TINY_STEPS, "task.data.source=hub", f"task.data.path={hub(where)}"],
    }  # fmt: skip
    for name, overrides in more.items():
        run = cli_here(where, *overrides)
        assert run.code == 0, run.err
        unread_of[name] = set(run.record()["unused_keys"])
    unread_of["two machines"] = set(two_machines(where, [*given, *TINY_STEPS]).record()["unused_keys"])
    everything = set(config.flatten_keys(dataclasses.asdict(peftrun.load())))
    dead = set.intersection(*unread_of.values()) & everything
    assert {key for key in dead if key.split(".")[0] not in COMPOSED} == set()


def harness_task(where):
    """A folder with a task of one's own for lm-evaluation-harness."""
    folder = where / "harness"
    folder.mkdir()
    jsonl(folder / "rows.jsonl", [{"ask": f"Is {n} even?", "answer": "no"} for n in range(1, 9, 2)])
    (folder / "even.yaml").write_text(
        f"task: even\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{ask}}"\ndoc_to_choice: ["no", "yes"]\ndoc_to_target: answer\n'
    )
    return folder


def hub(where):
    """A folder that datasets takes for a data set of the Hub."""
    folder = where / "hub"
    folder.mkdir()
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def two_machines(where, given):
    """The run of the first of two machines, which are one."""
    both = [
        *given,
        "device=ddp",
        "device.type=cpu",
        "device.dtype=float32",
        "device.num_processes=1",
        "device.num_machines=2",
    ]
    both += [
        "device.main_process_ip=127.0.0.1",
        "device.main_process_port=29613",
        "trainer.per_device_train_batch_size=2",
    ]
    other = [sys.executable, "-m", "peftrun", *both, "device.machine_rank=1", f"hydra.run.dir={where}/second"]
    second = subprocess.Popen(other, cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        run = cli_here(where, *both)
        said = second.communicate(timeout=120)[1]
    finally:
        second.kill()
    assert run.code == 0 and second.returncode == 0, run.err + said
    assert "not used by this run" not in run.err + said
    return run


def test_no_torch_is_needed_to_look_at_a_record():
    code = "import sys; from peftrun.config import usage; from peftrun.runs import unused_keys; from peftrun.config_tools import explanation, explain_tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
