"""action=replay: a record run again is the same to the byte, or the verdict names what has drifted."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TINY_STEPS, build_llama, cli_here, jsonl, subprocess_cli
from faults import check_failed, check_refused
from safetensors.torch import load_file, save_file

import peftrun
from peftrun.errors import ProofError
from peftrun.io.atomic_files import hash_file
from peftrun.system import environment

sys.path.insert(0, str(Path(__file__).parent.parent))
from encoders import STEPS, build_bert, build_t5, on_texts, on_words

NUMBERS = range(40)
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def models(tmp_path_factory, llama):
    folder = tmp_path_factory.mktemp("models")
    return {"llama": llama, "bert": build_bert(folder / "tiny-bert"), "t5": build_t5(folder / "tiny-t5")}


def preferences(kind, llama, where):
    """Overrides of a run on pairs, on judged answers, or on prompts with a reward."""
    asked = [f"Is {n} even?" for n in NUMBERS]
    rows = {
        "dpo": [{"q": text, "good": "yes", "bad": "no"} for text in asked],
        "kto": [{"q": text, "a": "yes" if n % 2 else "no", "ok": bool(n % 2)} for n, text in enumerate(asked)],
        "grpo": [{"q": text, "a": "yes"} for text in asked],
    }[kind]
    columns = {
        "dpo": ["task.messages_column=null", "task.prompt_template='{q}'", "task.chosen_column=good", "task.rejected_column=bad"],
        "kto": ["task.messages_column=null", "task.prompt_template='{q}'", "task.completion_template='{a}'", "task.desirable_column=ok"],
        "grpo": ["task.prompt_template='{q}'", "task.completion_template='{a}'", "task.data.label_column=null", "task.data.labels=null",
                 "task.data.balance=false", "task.objective.max_completion_length=4", "task.objective.num_generations=4",
                 "task.objective.rewards=[matches_pattern]", "task.objective.reward_weights=null",
                 "task.objective.pattern='^[a-m]'"],
    }[kind]  # fmt: skip
    file = jsonl(where / f"{kind}.jsonl", rows)
    return [
        "model=pretrained", f"model.name_or_path={llama}", f"task={kind}", "task.data.source=file", f"task.data.path={file}",
        "task.data.num_test_rows=8", "task.max_length=64", *columns, "device=cpu", "device.dtype=float32", *TINY_STEPS,
        "trainer.learning_rate=1e-2",
    ]  # fmt: skip


def translation(t5, where):
    words = ["el", "la", "libro", "muy", "bueno", "malo"]
    file = jsonl(where / "translated.jsonl", [{"en": f"{a} {b}", "es": b} for a in words for b in words])
    return [
        "model=pretrained", f"model.name_or_path={t5}", "task=translation", "task.data.source=file", f"task.data.path={file}",
        "task.prompt_template='{en}'", "task.completion_template='{es}'", "task.data.num_test_rows=8", "device=cpu", "device.dtype=float32", *TINY_STEPS,
    ]  # fmt: skip


def of_kind(kind, models, where, on_tiny):
    return {
        "causal_lm": lambda: [*on_tiny(models["llama"]), *TINY_STEPS, "lora.lora_dropout=0.1"],
        "seq_cls": lambda: [*on_texts(models["bert"], where), *STEPS],
        "token_cls": lambda: [*on_words(models["bert"], where), *STEPS],
        "seq2seq": lambda: translation(models["t5"], where),
        "preference": lambda: preferences("dpo", models["llama"], where),
        "unpaired_preference": lambda: preferences("kto", models["llama"], where),
        "prompt_only": lambda: preferences("grpo", models["llama"], where),
    }[kind]()


def replayed(where, run, *more):
    return cli_here(where, "action=replay", f"run={run}", *more)


def verdict(outcome):
    return outcome.record()["replay"]


def drifted(outcome):
    return {(one["kind"], one["name"]): (one["then"], one["now"]) for one in verdict(outcome)["drifted"]}


KINDS = ["causal_lm", "seq_cls", "token_cls", "seq2seq", "preference", "unpaired_preference", "prompt_only"]


QUICK = ("causal_lm", "seq_cls")


@pytest.mark.parametrize(
    "kind",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in KINDS],
)
def test_every_task_kind_comes_out_the_same_to_the_byte(where, models, on_tiny, kind):
    first = cli_here(where, *of_kind(kind, models, where, on_tiny))
    assert first.code == 0, first.err
    again = replayed(where, first.run_dir)
    assert again.code == 0, again.err
    assert verdict(again)["verdict"] == "identical" and not drifted(again)
    assert hash_file(again.run_dir / "again" / WEIGHTS) == hash_file(first.run_dir / WEIGHTS)
    assert "verdict  identical" in again.out and "nothing that was recorded" in again.out


def test_what_is_run_again_is_a_whole_run_folder(where, trained):
    again = replayed(where, trained).run_dir / "again"
    assert {"config.yaml", "record.json", "metrics.jsonl", "adapter"} <= {path.name for path in again.iterdir()}
    assert (again / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    assert json.loads((again / "record.json").read_text())["status"] == "completed"
    # Another process wrote the first one: names in sets are in the same order all the same.
    assert hash_file(again / "adapter" / "adapter_config.json") == hash_file(
        trained / "adapter" / "adapter_config.json"
    )


def test_a_record_holds_a_lock_of_its_environment(trained):
    record = json.loads((trained / "record.json").read_text())
    lock, numerics = record["environment"], record["numerics"]
    assert lock["packages"]["torch"] == record["versions"]["torch"] and len(lock["packages"]) > 60
    assert {"python", "platform", "cpu", "cores", "gpus", "settings", "code"} <= lock.keys()
    assert numerics["threads"] >= 1 and numerics["deterministic"] is True and numerics["not_deterministic"] == []


@pytest.mark.parametrize(("key", "then", "now"), [("seed", 0, 1), ("trainer.learning_rate", 0.01, 0.02)])
def test_another_value_is_named(where, trained, key, then, now):
    again = replayed(where, trained, f"{key}={now}")
    assert again.code == 1 and verdict(again)["verdict"] == "different"
    assert drifted(again) == {("config", key): (then, now)}
    assert (
        "the result differs: weights by max |Δ|" in again.err and f"drifted: config: {key} {then} → {now}" in again.err
    )
    assert "verdict" in again.out and "action=diff" in again.out and "Traceback" not in again.err
    assert again.record()["status"] == "failed" and verdict(again)["weights"]["largest_difference"] > 1e-3


def test_what_has_drifted_is_told_also_where_the_second_run_fails(where, trained):
    outcome = cli_here(where, "action=replay", f"run={trained}", "trainer.learning_rate=1e30")
    assert outcome.code == 1
    assert "config, drifted: trainer.learning_rate 0.01 → 1e+30" in outcome.err


def test_a_config_that_was_altered_is_drift(where, tmp_path, trained):
    altered = shutil.copytree(trained, tmp_path / "altered")
    config = altered / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 5"))
    outcome = cli_here(where, "action=replay", f"run={altered}", "check_only=true")
    assert outcome.code == 1 and "config.yaml itself" in outcome.err


def test_a_group_typed_beside_replaces_the_records(where, trained):
    again = replayed(where, trained, "lora=dora", "lora.r=4")
    assert again.code == 1 and {("config", "lora.use_dora"), ("config", "lora.r")} <= drifted(again).keys()
    assert "tensors are on one side only" in verdict(again)["weights"]["not_comparable"]


@pytest.mark.slow
def test_a_tolerance_is_held(where, trained):
    near = replayed(where, trained, "trainer.learning_rate=0.01000001")
    assert near.code == 0 and verdict(near)["verdict"] == "equal within tolerance"
    assert 0 < verdict(near)["weights"]["largest_difference"] < 1e-3 and "tolerance 0.001" in near.out
    strict = replayed(where, trained, "trainer.learning_rate=0.01000001", "tolerance=0")
    assert strict.code == 1 and verdict(strict)["verdict"] == "different"


@pytest.fixture
def own(tmp_path, on_tiny):
    """A run on a model and rows of its own, which a test may change."""
    rows = jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Is {n} even?", "completion": "yes"} for n in NUMBERS])
    base = build_llama(tmp_path / "base", seed=3)
    given = [one for one in on_tiny(base) if not one.startswith("task.data.path")]
    run = cli_here(tmp_path, *given, f"task.data.path={rows}", *TINY_STEPS, "device.num_threads=1")
    assert run.code == 0, run.err
    return run


@pytest.mark.parametrize("only_checked", [True, False], ids=["check", "replay"])
def test_one_row_that_has_changed_is_named(tmp_path, own, only_checked):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Is 17 even?", "Is 17 odd?"))
    again = replayed(tmp_path, own.run_dir, *(["check_only=true"] if only_checked else []))
    assert again.code == 1 and drifted(again).keys() == {("data", "rows")}
    assert ("data, drifted: rows" if only_checked else "drifted: data: rows") in again.err


def test_tools_and_prompts_that_have_changed_are_named(tmp_path, llama, on_tiny):
    """Tools also as part of the rows, and also where these are kept from an earlier run."""
    tools, prompts = tmp_path / "tools.json", tmp_path / "prompts.txt"
    tools.write_text('[{"name": "weather"}]')
    prompts.write_text("Is it warm?")
    own = [*on_tiny(llama), f"task.tools={tools}"]
    train = cli_here(tmp_path, *own, *TINY_STEPS)
    asked = ["action=generate", f"action.prompts_file={prompts}", "action.max_new_tokens=2"]
    generate = cli_here(tmp_path, *own, *asked)
    for run in (train, generate):
        assert "nothing has drifted" in replayed(tmp_path, run.run_dir, "check_only=true").out, run.err
    tools.write_text('[{"name": "climate"}]')
    prompts.write_text("Is it cold?")
    for run, names in ((train, {"task.tools", "rows"}), (generate, {"task.tools", "action.prompts_file"})):
        again = replayed(tmp_path, run.run_dir, "check_only=true")
        assert again.code == 1 and drifted(again).keys() == {("data", name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("only_checked", [True, False], ids=["check", "replay"])
def test_other_weights_of_the_base_are_named(tmp_path, own, only_checked):
    shutil.rmtree(tmp_path / "base")
    build_llama(tmp_path / "base", seed=4)
    again = replayed(tmp_path, own.run_dir, *(["check_only=true"] if only_checked else []))
    assert again.code == 1 and drifted(again).keys() == {("base", "base weights")}
    assert ("base, drifted: base weights" if only_checked else "drifted: base: base weights") in again.err


@pytest.mark.slow
def test_another_number_of_threads_is_named_though_the_bytes_may_be_the_same(tmp_path, own):
    again = replayed(tmp_path, own.run_dir, "device.num_threads=2")
    assert verdict(again)["verdict"] in ("identical", "equal within tolerance") and again.code == 0
    assert drifted(again) == {("config", "device.num_threads"): (1, 2), ("numerics", "threads"): (1, 2)}


@pytest.mark.slow
def test_another_version_of_a_package_is_named(tmp_path, trained):
    """Its metadata alone: what is installed says that it is another."""
    for name, version in {"accelerate": "1.99.0", "Some.Thing_new": "0.1"}.items():
        metadata = tmp_path / "in_front" / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    args = ["action=replay", f"run={trained}"]
    in_front = os.pathsep.join([str(tmp_path / "in_front"), os.environ.get("PYTHONPATH", "")])
    again = subprocess_cli(tmp_path, *args, PYTHONPATH=in_front)
    assert again.code == 0 and verdict(again)["verdict"] == "identical", again.err
    known = json.loads((trained / "record.json").read_text())["versions"]["accelerate"]
    assert drifted(again) == {
        ("libraries", "accelerate"): (known, "1.99.0"),
        ("other packages", "some-thing-new"): (None, "0.1"),
    }
    assert f"accelerate {known} → 1.99.0" in again.out and "some-thing-new not installed → 0.1" in again.out


def test_env_check_trains_nothing_and_shows_every_input(where, trained):
    checked = replayed(where, trained, "check_only=true")
    assert checked.code == 0, checked.err
    assert not (checked.run_dir / "again").exists() and "nothing has drifted" in checked.out
    for kind in (
        "config",
        "data",
        "base",
        "libraries",
        "peftrun's code",
        "machine",
        "numerics",
        "system",
        "other packages",
    ):
        assert f"{kind}, the same" in checked.out, checked.out
    assert "step" not in checked.err
    longer = where / "longer"
    shutil.copytree(trained, longer)
    record = json.loads((longer / "record.json").read_text())
    record["training"]["steps"] += 1
    (longer / "record.json").write_text(json.dumps(record))
    checked = replayed(where, longer, "check_only=true")
    assert checked.code == 1 and "steps, planned and taken 4 → 5" in checked.err


@pytest.mark.slow
def test_what_is_gone_is_named(tmp_path, own):
    shutil.rmtree(tmp_path / "base")
    again = replayed(tmp_path, own.run_dir)
    assert again.code == 1 and f"model.name_or_path={tmp_path / 'base'}" in again.err and "Traceback" not in again.err


@pytest.mark.slow
def test_an_older_record_is_run_again_and_what_it_does_not_tell_is_said(tmp_path, trained):
    run = tmp_path / "older"
    shutil.copytree(trained, run)
    record = json.loads((run / "record.json").read_text())
    for key in ("environment", "numerics", "input_adapters", "files"):
        record.pop(key)
    (run / "record.json").write_text(json.dumps(record))
    checked = replayed(tmp_path, run, "check_only=true")
    assert (
        checked.code == 0 and "machine, not recorded" in checked.out and "other packages, not recorded" in checked.out
    )
    again = replayed(tmp_path, run)
    assert again.code == 0 and verdict(again)["verdict"] == "identical"
    assert "peftrun's code: source" in verdict(again)["not_recorded"] and "numerics: threads" in again.out


@pytest.mark.slow
def test_the_record_counts_not_what_lies_there_now(tmp_path, trained):
    run = tmp_path / "tampered"
    shutil.copytree(trained, run)
    save_file({key: value + 1 for key, value in load_file(run / WEIGHTS).items()}, run / WEIGHTS)
    assert verdict(replayed(tmp_path, run))["verdict"] == "identical"
    other = replayed(tmp_path, run, "seed=1")
    assert other.code == 1 and "adapter_model.safetensors has changed since the run wrote it" in other.out


@pytest.mark.slow
def test_without_its_files_a_record_still_tells_same_from_other(tmp_path, trained):
    run = tmp_path / "bare"
    run.mkdir()
    for name in ("record.json", "config.yaml"):
        shutil.copy(trained / name, run / name)
    assert verdict(replayed(tmp_path, run))["verdict"] == "identical"
    other = replayed(tmp_path, run, "seed=1")
    assert other.code == 1 and "the distance between the weights cannot be computed" in other.err


@pytest.fixture(scope="module")
def actions(where, trained, llama, on_tiny):
    """A run of each action that works on an adapter."""
    tiny, adapter = on_tiny(llama), f"adapter={trained}"
    merged = cli_here(where, *tiny, "action=merge", adapter, f"action.output_dir={where / 'elsewhere'}").run_dir
    two = f"adapter={{a: {trained}, b: {trained}}}"
    args = {
        "save": [adapter, "action.dtype=bfloat16"],
        "reload": [adapter],
        "evaluate": [],
        "generate": [adapter, "action.prompt=hello", "action.temperature=1", "action.max_new_tokens=6"],
        "unmerge": [adapter],
        "combine": [two],
        "diff": [two],
        "extract": ["lora=lora", "lora.r=4", f"action.finetuned_model={where / 'elsewhere'}"],
    }
    on = {"unmerge": [one.replace(str(llama), str(where / "elsewhere")) for one in tiny]}
    runs = {name: cli_here(where, *on.get(name, tiny), f"action={name}", *more) for name, more in args.items()}
    assert not [run.err for run in runs.values() if run.code]
    return {"merge": merged, **{name: run.run_dir for name, run in runs.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["merge", "save", "reload", "evaluate", "generate", "unmerge", "combine", "extract", "diff"]
)
def test_every_action_that_leaves_something_is_run_again(where, actions, name):
    again = replayed(where, actions[name])
    assert again.code == 0, again.err
    assert verdict(again)["verdict"] == "identical" and not drifted(again)


def test_an_adapter_that_is_given_is_an_input(where, tmp_path, actions, trained, llama, on_tiny):
    copy = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", copy)
    merged = cli_here(tmp_path, *on_tiny(llama), "action=merge", f"adapter={copy}", "action.verify=false")
    save_file({key: value * 1.5 for key, value in load_file(copy / "adapter_model.safetensors").items()},
              copy / "adapter_model.safetensors")  # fmt: skip
    again = replayed(tmp_path, merged.run_dir)
    assert again.code == 1 and ("input adapters", "default") in drifted(again)
    assert verdict(again)["weights"]["largest_difference"] > 1e-3


def test_figures_of_a_run_without_files_are_compared(where, actions):
    again = replayed(where, actions["evaluate"], "task.data.num_test_rows=10")
    assert again.code == 1 and verdict(again)["metrics"].keys() >= {"loss"}
    assert "loss" in again.err and "task.data.num_test_rows 8 → 10" in again.err


@pytest.mark.slow
def test_a_resumed_run_is_run_from_its_first_step(tmp_path, trained, llama, on_tiny):
    stopped = tmp_path / "stopped"
    shutil.copytree(trained, stopped)
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-4")
    record = json.loads((stopped / "record.json").read_text())
    (stopped / "record.json").write_text(json.dumps(record | {"status": "failed", "error": "interrupted"}))
    resumed = cli_here(tmp_path, *on_tiny(llama), *TINY_STEPS, f"action.resume={stopped}")
    assert resumed.code == 0 and resumed.record()["resumed_from"], resumed.err
    again = replayed(tmp_path, resumed.run_dir)
    assert again.code == 0 and verdict(again)["verdict"] == "identical" and not drifted(again)
    assert "the rerun starts from the first step" in again.out


@pytest.mark.slow
def test_a_cell_of_a_sweep_is_run_again_alone(tmp_path, llama, on_tiny):
    sweep = cli_here(tmp_path, "-m", *on_tiny(llama), *TINY_STEPS, "lora.r=2,4", "hydra/launcher=shared_base")
    assert sweep.code == 0, sweep.err
    again = replayed(tmp_path, sweep.run_dir)
    assert again.code == 0 and verdict(again)["verdict"] in ("identical", "equal within tolerance"), again.err
    assert "one of 2 cells trained jointly" in again.out and not drifted(again)


@pytest.mark.slow
def test_a_run_of_two_processes_is_run_again_in_two(tmp_path, llama, on_tiny):
    spread = ["device=ddp", "device.type=cpu", "device.dtype=float32"]
    first = cli_here(tmp_path, *on_tiny(llama), *TINY_STEPS, *spread)
    assert first.record()["numerics"]["deterministic"] is True, first.err
    again = replayed(tmp_path, first.run_dir)
    assert again.code == 0 and verdict(again)["verdict"] == "identical", again.err
    assert not drifted(again)


@pytest.mark.slow
def test_from_python_it_is_the_same(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    assert peftrun.run("action=replay", f"run={trained}").facts["replay"]["verdict"] == "identical"
    with pytest.raises(ProofError, match="seed 0 → 5"):
        peftrun.run("action=replay", f"run={trained}", "seed=5")


def run_with(tmp_path, trained, **changes):
    run = tmp_path / "changed"
    shutil.copytree(trained, run)
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | changes))
    return run


def test_what_cannot_be_run_again_is_a_line(cli, tmp_path, trained, llama, on_tiny):
    replay = ["action=replay"]
    check_refused(cli, tmp_path, replay, ["action.run is not set", "run=outputs/train/RUN"])
    check_refused(cli, tmp_path, [*replay, "run=nowhere"], ["action.run=nowhere: is no run folder"])
    failed = run_with(tmp_path, trained, status="failed", error="interrupted")
    check_refused(cli, tmp_path, [*replay, f"run={failed}"], ["this run is 'failed' (interrupted)", "check_only=true"])
    assert cli(*replay, f"run={failed}", "check_only=true").code == 0
    shutil.rmtree(failed)
    planned = run_with(tmp_path, trained, action="plan")
    check_refused(cli, tmp_path, [*replay, f"run={planned}"], ["is a run of action=plan", "train"])
    check_failed(
        cli, tmp_path, [*replay, f"run={trained}", "experiment=chat"], ["experiment=chat", "has all its values"]
    )
    check_failed(
        cli,
        tmp_path,
        [*replay, f"run={trained}", "task.data.path=gone.jsonl"],
        ["task.data.path=gone.jsonl", "no such file"],
    )


def test_the_code_counts_whichever_file_of_it_changes(tmp_path, monkeypatch):
    package = tmp_path / "peftrun"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(environment, "PACKAGE_DIR", package)
    before = environment._describe_source.__wrapped__()
    (package / "b.py").write_text("")
    assert environment._describe_source.__wrapped__()["sha256"] != before["sha256"]


def test_the_lock_holds_what_is_installed():
    """The very names and versions that the standard library finds, a hundred times as fast; none of what setuptools carries inside."""
    import re
    from importlib.metadata import distributions

    known = {}
    for one in distributions(path=[entry for entry in sys.path if not entry.endswith("_vendor")]):
        known.setdefault(re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version)
    assert environment.list_installed_packages() == known
