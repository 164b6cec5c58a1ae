"""An adapter is trained further: from its own weights, into a folder of its own, with its line of ancestors."""

import json
import shutil

import encoders
import pytest
from cases import cases
from conftest import TINY_STEPS, jsonl
from safetensors.torch import load_file

import peftrun
from peftrun.artifacts import lineage
from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFTRUN_METADATA
from peftrun.errors import ConfigError
from peftrun.io.atomic_files import hash_file, read_json
from peftrun.planning.joint_memory import Limits
from peftrun.runs import execute

CPU = ["device=cpu", "device.dtype=float32"]
FURTHER = [*CPU, *TINY_STEPS, "trainer.learning_rate=1e-2"]


def digest(run):
    return hash_file(run / ADAPTER / ADAPTER_WEIGHTS)


def files(folder):
    return {path: hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def completed(outcome):
    assert outcome.code == 0, outcome.err
    return outcome.run_dir


@pytest.fixture(scope="session")
def preferences(tmp_path_factory):
    rows = [{"prompt": f"Is {n} even?", "chosen": "no" if n % 2 else "yes", "rejected": "maybe"} for n in range(40)]
    return jsonl(tmp_path_factory.mktemp("preferences") / "preferences.jsonl", rows)


def test_no_step_is_the_parent_and_a_further_training_starts_there(cli, trained, preferences, tmp_path):
    before = files(trained)
    same = cli(f"adapter={trained}", *CPU, "trainer.max_steps=0", "action.num_samples=0")
    assert digest(completed(same)) == digest(trained)
    after = json.loads((trained / "record.json").read_text())["metrics"]["after"]
    record = same.record()
    assert record["metrics"]["before"] == record["metrics"]["after"] == pytest.approx(after)
    assert record["parent"]["sha256"] == digest(trained) and record["parent"]["steps"] == 4
    # Another objective on other rows, on top of that; model, method and rank are the first run's.
    rows = ["task=preferences", f"task.data.path={preferences}", "task.data.num_test_rows=8", "task.max_length=64"]
    further = completed(cli(f"adapter={same.run_dir}", *rows, *FURTHER, "lora.loraplus_lr_ratio=4"))
    chain = lineage.list_ancestors(read_json(further / ADAPTER / PEFTRUN_METADATA))
    assert [one["steps"] for one in chain] == [0, 4] and digest(further) != digest(trained)
    assert files(trained) == before
    # Known where the folders are gone, and shown by all that reads runs.
    shutil.rmtree(same.run_dir)
    shown = cli("action=inspect", f"adapter={further}").out
    assert shown.count("trained from") == 2 and "4 steps" in shown
    listed = cli("action=list", "format=json", "where=parents!=null")
    assert " ← " in json.loads(listed.out)[0]["parents"], (listed.out, listed.err)
    assert "Continues an adapter" in (further / "report.html").read_text()
    card = completed(
        cli("action=export", f"adapter={further}", "base_model=ORG/NAME", "license=mit", "output_dir=card")
    )
    assert card and " ← " in (tmp_path / "card" / "README.md").read_text()


OTHER = '{"base_model_name_or_path": "x", "peft_type": "LORA", "from_the_future": true}'
REFUSED = {  # what is typed beside the adapter → what the line must name
    "lora.r=16": ["lora.r=16", "has 8", "omit it"],
    "lora.target_modules=[q_proj]": ["lora.target_modules=[q_proj]", "omit it"],
    "lora=dora": ["lora.use_dora=true", "has false"],
    "lora=pissa": ["lora.init_lora_weights=pissa_niter_16"],
    "lora=loha": ["lora.method=loha", "is of method lora"],
    "lora=none": ["lora=none", "omit lora=none"],
    "adapter=nowhere": ["adapter=nowhere: is not a folder"],
    "adapter=lora": ["adapter=lora", "type lora=lora"],
    "adapter={one: RUN, two: RUN}": ["continues one adapter, and 2"],
    "task=spanish_sentiment": ["is a causal_lm adapter", "task.type=seq_cls"],
    "adapter=newer": ["from_the_future=true", "PEFT"],
    "adapter=torn": [ADAPTER_WEIGHTS, "missing"],
    "adapter=scores": ["is of type ADALORA", "train a new adapter"],
    "adapter=loop": ["adapter=loop", "leads back to it", f"restore {PEFTRUN_METADATA}"],
    "adapter=calls": ["lora.alora_invocation_tokens=[5,7]", "has [7,5]"],
}  # fmt: skip


@cases("typed", REFUSED)
def test_what_cannot_be_is_one_line_before_anything_is_written(cli, tmp_path, trained, llama, on_tiny, typed):
    made = {
        "newer": {"from_the_future": True}, "torn": {}, "scores": {"peft_type": "ADALORA"}, "loop": {},
        "calls": {"alora_invocation_tokens": [7, 5]},
    }  # fmt: skip
    for name, changes in made.items():
        shutil.copytree(trained / ADAPTER, tmp_path / name)
        config = read_json(tmp_path / name / ADAPTER_CONFIG) | changes
        (tmp_path / name / ADAPTER_CONFIG).write_text(json.dumps(config))
    (tmp_path / "torn" / ADAPTER_WEIGHTS).unlink()
    about = read_json(tmp_path / "loop" / PEFTRUN_METADATA)
    itself = {"sha256": hash_file(tmp_path / "loop" / ADAPTER_WEIGHTS), "run": "loop", "steps": 4}
    (tmp_path / "loop" / PEFTRUN_METADATA).write_text(json.dumps(about | {"parent": itself | {"parents": []}}))
    # A copy outside its run does not know the folders of its base model and its rows.
    given = on_tiny(llama) if typed.startswith("adapter=") else [f"adapter={trained}"]
    given += ["lora.alora_invocation_tokens=[5,7]"] if typed == "adapter=calls" else []
    refused = cli(*given, typed.replace("RUN", str(trained)), *FURTHER)
    lines = [line for line in refused.err.splitlines() if line.startswith("peftrun: ")]
    assert refused.code == 1 and refused.run_dir is None and len(lines) == 1, refused.err
    assert all(part in lines[0] for part in REFUSED[typed]), lines


def test_an_adapter_of_a_newer_version_is_continued_with_a_warning(cli, tmp_path, trained, llama, on_tiny):
    shutil.copytree(trained / ADAPTER, tmp_path / "later")
    file = tmp_path / "later" / PEFTRUN_METADATA
    file.write_text(json.dumps(read_json(file) | {"peftrun": "99.0.0"}))
    for path, count in ((tmp_path / "later", 1), (trained, 0)):
        done = cli(*on_tiny(llama), f"adapter={path}", *CPU, "trainer.max_steps=0", "action.num_samples=0")
        assert done.code == 0 and done.err.count("was made by peftrun 99.0.0, newer than this") == count, done.err


def test_what_is_typed_and_equal_is_accepted(trained):
    own = peftrun.load(f"adapter={trained}", *CPU).lora
    for typed in (["lora=lora"], ["lora.r=8"], ["lora.target_modules=all-linear"], ["lora.use_dora=false"]):
        assert peftrun.load(f"adapter={trained}", *CPU, *typed).lora == own
    assert peftrun.load(f"adapter={trained}", *CPU, "lora=loraplus").lora.loraplus_lr_ratio == 16
    with pytest.raises(ConfigError, match="adalora"):
        peftrun.load(f"adapter={trained}", *CPU, "lora=adalora")


@cases("extra", [["lora.lora_dropout=0.2"], ["task.data.num_train_rows=20"]])
def test_killed_and_resumed_is_uninterrupted(cli, trained, extra):
    overrides = [f"adapter={trained}", *FURTHER, *extra]
    whole = completed(cli(*overrides))
    record = read_json(whole / "record.json")
    (whole / "record.json").write_text(json.dumps(record | {"status": "running"}))
    (whole / "checkpoints" / "checkpoint-4" / "complete").unlink()
    resumed = completed(cli(*overrides, "action.resume=auto"))
    assert digest(resumed) == digest(whole)


def together(folder, cells):
    folders = [folder / f"joint{number}" for number in range(len(cells))]
    specs = [peftrun.load(*cell) for cell in cells]
    assert not execute.execute_jointly(specs, folders, Limits(cells=len(cells)))
    return folders


def check_joint(folder, cells):
    """Each cell of a joint run is its lone run, started from the same weights."""
    for joint, cell in zip(together(folder, cells), cells, strict=True):
        record = read_json(joint / "record.json")
        assert record["status"] == "completed", record.get("error")
        lone = folder / f"lone-{joint.name}"
        execute.execute_run(peftrun.load(*cell), lone)
        one, other = (load_file(run / ADAPTER / ADAPTER_WEIGHTS) for run in (joint, lone))
        assert one.keys() == other.keys()
        # Adam takes a full step where a gradient is nothing but rounding: such an element, and it alone, may go another way.
        far = sum(((one[key] - other[key]).abs() > 1e-5 * other[key].abs().max()).sum().item() for key in one)
        assert far < 0.01 * sum(value.numel() for value in one.values())
        alone = read_json(lone / "record.json")
        assert record["metrics"]["before"] == pytest.approx(alone["metrics"]["before"], rel=1e-5)
        assert record.get("parent") == alone.get("parent")
        assert record["trainable_parameters"] == alone["trainable_parameters"]
        configs = [read_json(run / ADAPTER / ADAPTER_CONFIG) for run in (joint, lone)]
        assert configs[0] == configs[1]


def test_cells_that_continue_one_parent_or_several_equal_their_lone_runs(cli, tmp_path, trained, llama, on_tiny):
    other = completed(cli(*on_tiny(llama), *TINY_STEPS, "lora.r=4", "lora.target_modules=[q_proj,v_proj]", "seed=5"))
    tiny, rates = [*TINY_STEPS, "trainer.save_strategy=no"], ("1e-2", "3e-3", "1e-3")
    cells = [[f"adapter={trained}", *CPU, *tiny, f"trainer.learning_rate={rate}"] for rate in rates]
    cells += [[f"adapter={other}", *CPU, *tiny, "lora.lora_dropout=0.1"], [f"adapter={trained}", *CPU, *tiny, "seed=3"]]
    cells += [[f"adapter={trained}", *CPU, *tiny, "trainer.max_steps=0"], [*on_tiny(llama), *tiny]]
    check_joint(tmp_path, cells)
    zero = tmp_path / "joint5"
    assert digest(zero) == digest(trained)


def test_a_classifier_is_continued_with_its_head(cli, tmp_path):
    task = encoders.on_texts(encoders.build_bert(tmp_path / "bert"), tmp_path)
    first = completed(cli(*task, *TINY_STEPS))
    same = completed(cli(f"adapter={first}", *CPU, "trainer.max_steps=0"))
    assert digest(same) == digest(first)
    check_joint(tmp_path, [[f"adapter={first}", *FURTHER, f"seed={seed}"] for seed in (0, 1)])
    refused = cli(f"adapter={first}", *FURTHER, "task.label_names=[positive,negative]")
    assert refused.code == 1 and "has the labels negative, positive" in refused.err


ELSEWHERE = {
    "two processes": ["device=ddp", "device.type=cpu", "device.num_processes=2", "device.dtype=float32"],
    "a quantized base": [*CPU, "model.quantization=torchao_int8"],
    "a checkpoint": [*CPU],
}


@pytest.mark.slow
@cases("where", ELSEWHERE)
def test_continued_on_other_devices_and_bases(cli, trained, llama, on_tiny, where):
    parent = trained / "checkpoints" / "checkpoint-2" if where == "a checkpoint" else trained
    rows = [text for text in on_tiny(llama) if text.startswith(("model", "task"))]
    settings = [*rows, *ELSEWHERE[where], *TINY_STEPS, "trainer.save_strategy=no"]
    same = cli(f"adapter={parent}", *settings, "trainer.max_steps=0")
    start = parent if where == "a checkpoint" else parent / ADAPTER
    one, other = (load_file(folder / ADAPTER_WEIGHTS) for folder in (start, completed(same) / ADAPTER))
    assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())
    further = cli(f"adapter={parent}", *settings, "trainer.learning_rate=1e-2")
    metrics = further.record()["metrics"] if completed(further) else {}
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert further.record()["parent"]["steps"] == (2 if where == "a checkpoint" else 4)
