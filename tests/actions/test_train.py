"""action=train: learns, saves what PEFT loads, is reproducible to the byte, continues after a kill."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama
from faults import check_failed, check_told, instead
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from test_bad_artifacts import no_file_above
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from peftrun.io import atomic_files
from peftrun.io.atomic_files import hash_file

LONGER = ["trainer.max_steps=30", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=5"]


def weights(run: Path) -> Path:
    return run / "adapter" / "adapter_model.safetensors"


def test_it_learns_and_says_so(cli, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "trainer.max_steps=40", "trainer.warmup_steps=0")
    metrics = outcome.record()["metrics"]
    assert metrics["after"]["loss"] < 0.7 * metrics["before"]["loss"]
    assert "next:" in outcome.out and "action=merge" in outcome.out


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_the_run_folder_holds_what_it_promises(cli, request, on_tiny, base):
    outcome = cli(*on_tiny(request.getfixturevalue(base)), *TINY_STEPS)
    record = outcome.record()
    assert outcome.code == 0 and record["status"] == "completed"
    assert {"config.yaml", ".hydra", "record.json", "metrics.jsonl", "adapter", "checkpoints"} <= {
        p.name for p in outcome.run_dir.iterdir()
    }
    assert record["artifacts"]["adapter/adapter_model.safetensors"] == hash_file(weights(outcome.run_dir))
    rows = [json.loads(line) for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 and row["num_tokens"] > 0 for row in rows)


def test_peft_alone_loads_the_adapter_and_answers_alike(trained, llama):
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"  # portable: no path of this machine
    base = AutoModelForCausalLM.from_pretrained(llama)
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(base, trained / "adapter")
    kept = json.loads((trained / "adapter" / "peftrun.json").read_text())["probe"]["cpu float32"]
    from transformers import AutoTokenizer

    from peftrun.adapters import probes

    values = probes.compute_probe_logits(adapted.eval(), AutoTokenizer.from_pretrained(llama))
    assert probes.measure_distance(values, kept) == 0.0
    assert AutoPeftModelForCausalLM is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(cli, llama, on_tiny):
    runs = [cli(*on_tiny(llama), *TINY_STEPS, "lora.lora_dropout=0.1", f"seed={seed}").run_dir for seed in (7, 7, 8)]
    first, second, other = (hash_file(weights(run)) for run in runs)
    assert first == second != other


def test_the_seed_reaches_the_initialisation(cli, llama, on_tiny):
    from safetensors.torch import load_file

    frozen = ["trainer.learning_rate=1e-30", *TINY_STEPS]
    one, other = (load_file(weights(cli(*on_tiny(llama), *frozen, f"seed={seed}").run_dir)) for seed in (1, 2))
    name = next(key for key in one if "lora_A" in key)
    assert not torch.equal(one[name], other[name])


def killed_after(where: Path, step: int, *args: str) -> Path:
    """A run folder whose process was killed (-9) as soon as the checkpoint of `step` was complete."""
    process = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *args], cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(30_000):  # minutes: what is tested is no speed
        found = list(where.glob(f"outputs/train/*/checkpoints/checkpoint-{step}/complete"))
        if found:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return found[0].parents[2]
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


@pytest.mark.parametrize(
    "extra",
    [[], pytest.param(["lora=pissa", "lora.lora_dropout=0.1"], marks=pytest.mark.slow)],
    ids=["lora", "pissa-dropout"],
)
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(cli, tmp_path, llama, on_tiny, extra):
    overrides = [*on_tiny(llama), *LONGER, "trainer.max_steps=60", *extra]
    killed = killed_after(tmp_path, 5, *overrides)
    assert json.loads((killed / "record.json").read_text())["status"] == "running"
    resumed = cli(*overrides, "action.resume=auto")
    assert "continuing" in resumed.err and resumed.code == 0, resumed.err
    whole = cli(*overrides)
    assert hash_file(weights(resumed.run_dir)) == hash_file(weights(whole.run_dir))
    steps = [json.loads(line)["step"] for line in (resumed.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def interrupted(cli, *overrides: str) -> Path:
    """A run folder as a kill after its last checkpoint leaves it."""
    run = cli(*overrides)
    assert run.code == 0, run.err
    (run.run_dir / "record.json").write_text(json.dumps(run.record() | {"status": "running"}))
    return run.run_dir


def test_a_torn_checkpoint_is_passed_over(cli, llama, on_tiny):
    overrides = [*on_tiny(llama), *LONGER, "trainer.max_steps=12"]
    run = interrupted(cli, *overrides)
    torn = run / "checkpoints" / "checkpoint-12"
    (torn / "complete").unlink()
    (torn / "trainer_state.json").write_text("{")
    (run / "checkpoints" / "checkpoint-14").mkdir()
    resumed = cli(*overrides, f"action.resume={run}")
    assert resumed.code == 0, resumed.err
    assert Path(resumed.record()["resumed_from"]).name == "checkpoint-10"
    assert f"{run}: incomplete, and ignored: checkpoint-12, checkpoint-14" in resumed.err
    assert not list(run.rglob("README.md"))


MEASURED = ["task.data.num_validation_rows=8", "trainer.eval_steps=2", "trainer.learning_rate=0.3"]
# How a training ends: what is set beside a constant learning rate, under which a step too many shows.
ENDS = {
    "steps": ["trainer.max_steps=3"],
    "a part of an epoch": ["trainer.max_steps=-1", "trainer.num_train_epochs=0.4", "trainer.save_strategy=epoch"],
    "epochs of a batch and a half": ["trainer.max_steps=-1", "trainer.num_train_epochs=1", "trainer.gradient_accumulation_steps=5"],
    "early stopping": [*MEASURED, "trainer.max_steps=20", "trainer.eval_strategy=steps", "trainer.early_stopping_patience=2"],
    "the best of them": [*MEASURED, "trainer.max_steps=6", "trainer.eval_strategy=steps", "trainer.load_best_model_at_end=true"],
    "the best by another metric": [*MEASURED, "trainer.max_steps=6", "trainer.eval_strategy=steps", "trainer.load_best_model_at_end=true",
                                   "task.metrics=[chrf]", "task.max_new_tokens=4", "trainer.metric_for_best_model=chrf"],
    "measured after an epoch": ["task.data.num_validation_rows=8", "trainer.eval_strategy=epoch", "trainer.save_steps=3",
                                "trainer.max_steps=8"],
    "stopped after an epoch": [*MEASURED, "trainer.max_steps=60", "trainer.eval_strategy=epoch", "trainer.save_strategy=epoch",
                               "trainer.early_stopping_patience=1"],
    # What PEFT leaves out of checkpoints.
    "projections of the first batch": ["lora=velora", "lora.velora_config.num_groups=8", "trainer.max_steps=4"],
    "the encoder of a prompt": ["lora=p_tuning", *MEASURED, "trainer.max_steps=6", "trainer.eval_strategy=steps",
                                "trainer.load_best_model_at_end=true"],
    "the encoder of a prefix": ["lora=prefix_tuning", "lora.prefix_projection=true", "trainer.max_steps=4"],
}  # fmt: skip


@cases("end", ENDS, every=4)
def test_a_run_killed_at_its_end_or_a_checkpoint_before_ends_alike(end, cli, llama, on_tiny):
    """From its last step to its record a killed run leaves the same; continued elsewhere, it trains no step more."""
    overrides = [*on_tiny(llama), *TINY_STEPS, "trainer.lr_scheduler_type=constant", *ENDS[end]]
    overrides += [] if any(one.startswith("lora=") for one in overrides) else ["lora.lora_dropout=0.1"]
    run = interrupted(cli, *overrides)
    killed = run.rename(run.with_name("killed"))  # nothing may lean on where it was
    whole, expected = atomic_files.read_json(killed / "record.json"), losses(killed)
    for checkpoints_left in ("all", "but the last"):
        resumed = cli(*overrides, f"action.resume={killed}")
        assert resumed.code == 0, resumed.err
        assert hash_file(weights(resumed.run_dir)) == hash_file(weights(killed)), checkpoints_left
        for key in ("steps", "train_loss"):
            assert resumed.record()["training"][key] == pytest.approx(whole["training"][key])
        assert losses(resumed.run_dir) == expected
        saved = sorted(killed.glob("checkpoints/*/complete"), key=lambda file: int(file.parent.name.split("-")[1]))
        if len(saved) == 1:  # there is none before it
            break
        saved[-1].unlink()


def losses(run: Path) -> list[tuple]:
    rows = atomic_files.read_json_lines(run / "metrics.jsonl")
    return [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows]


def test_auto_passes_over_runs_that_are_not_this_one(cli, tmp_path, llama, on_tiny):
    overrides = [*on_tiny(llama), *LONGER]
    for name, config in {"older": "some: thing\n", "empty": ""}.items():
        run = tmp_path / "outputs" / "train" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config)
        (run / "record.json").write_text('{"status": "failed"}')
    refused = cli(*overrides, "action.resume=auto")
    assert refused.code == 1 and "holds no unfinished run with this config" in refused.err


def test_another_config_is_not_continued(cli, llama, on_tiny):
    overrides = [*on_tiny(llama), *LONGER, "trainer.max_steps=6"]
    run = interrupted(cli, *overrides)
    refused = cli(*overrides, "lora.r=4", f"action.resume={run}")
    assert refused.code == 1 and refused.run_dir is None
    assert "lora.r=4: the run has 8" in refused.err


def edit_rows(base: Path, rows: Path, run: Path) -> None:
    rows.write_text(rows.read_text().replace("Is 3 even?", "Is 3 uneven?"))


def edit_template(base: Path, rows: Path, run: Path) -> None:
    (base / "chat_template.jinja").write_text((base / "chat_template.jinja").read_text() + "{# other #}")


def edit_weights(base: Path, rows: Path, run: Path) -> None:
    build_llama(base, seed=5)


def edit_tools(base: Path, rows: Path, run: Path) -> None:
    rows.with_name("tools.json").write_text('[{"name": "climate"}]')


def edit_how_rows_are_made(base: Path, rows: Path, run: Path) -> None:
    """As an update of a library may: of the same files other rows, which are known only once they are loaded."""
    for marker in run.glob("checkpoints/*/complete"):
        atomic_files.write_json(marker, atomic_files.read_json(marker) | {"rows": "0" * 64})


EDITED = {
    "task.data.path=": edit_rows,
    "task.tools=": edit_tools,
    "the base's chat template": edit_template,
    "the base's weights": edit_weights,
    "changed: rows (000000000000": edit_how_rows_are_made,
}


@cases("name", EDITED)
def test_what_a_run_is_made_from_may_not_change_before_it_is_continued(name, cli, tmp_path, data, on_tiny):
    base, rows = build_llama(tmp_path / "base"), Path(shutil.copy(data, tmp_path / "rows.jsonl"))
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather"}]')
    overrides = instead(on_tiny(base), [*TINY_STEPS, f"task.data.path={rows}", f"task.tools={tools}"])
    run = interrupted(cli, *overrides)
    EDITED[name](base, rows, run)
    refused = check_failed(
        cli, tmp_path, [*overrides, f"action.resume={run}"], [f"action.resume={run}", name, "leave action.resume out"]
    )
    assert refused.run_dir is None and [one.name for one in run.parent.iterdir()] == [run.name]


BEST = [
    "task.data.num_validation_rows=8",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=2",
    "trainer.load_best_model_at_end=true",
]


@cases("reason", ["a full disk", "the best checkpoint is gone"])
def test_what_cannot_be_copied_is_refused_and_leaves_nothing(reason, cli, tmp_path, llama, on_tiny):
    overrides = [*on_tiny(llama), *TINY_STEPS, *(BEST if "best" in reason else [])]
    run = interrupted(cli, *overrides)
    if "best" in reason:
        states = [file for file in run.glob("checkpoints/*/trainer_state.json")]
        for file in states:
            atomic_files.write_json(
                file, atomic_files.read_json(file) | {"best_model_checkpoint": str(run / "checkpoint-0")}
            )
    said = (
        "the best checkpoint of this run, is missing"
        if "best" in reason
        else "type hydra.run.dir=FOLDER on another disk"
    )
    with no_file_above(20_000) if "disk" in reason else nullcontext():  # less than a checkpoint's weights
        refused = check_failed(cli, tmp_path, [*overrides, f"action.resume={run}"], [f"action.resume={run}: ", said])
    assert refused.run_dir is None and [one.name for one in run.parent.iterdir()] == [run.name]


@pytest.mark.slow
def test_ctrl_c_leaves_a_finished_record(tmp_path, llama, on_tiny):
    overrides = [*on_tiny(llama), *LONGER, "trainer.max_steps=100000"]
    # Where tests run in the background the signal is ignored, and a process inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *overrides],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    while not list(tmp_path.glob("outputs/train/*/metrics.jsonl")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    record = json.loads(next(tmp_path.glob("outputs/train/*/record.json")).read_text())
    assert process.returncode == 130 and "Traceback" not in err
    assert record["status"] == "interrupted" and "error" not in record


def test_full_training_saves_a_model_that_evaluates(cli, llama, on_tiny):
    trained = cli(*on_tiny(llama), *TINY_STEPS, "lora=none", "trainer.learning_rate=1e-3")
    assert trained.record()["trainable_parameters"] == trained.record()["parameters"]
    overrides = [item for item in on_tiny(llama) if not item.startswith("model.name")]
    again = cli(*overrides, "action=evaluate", f"model.name_or_path={trained.run_dir / 'model'}")
    assert again.record()["metrics"]["loss"] == pytest.approx(trained.record()["metrics"]["after"]["loss"], abs=1e-6)


def spoiled(file: str, **values: object):
    """Changes a JSON file of a base."""
    return lambda base, patch: atomic_files.write_json(base / file, atomic_files.read_json(base / file) | values)


def with_adapter(base: Path, patch: pytest.MonkeyPatch) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig()).save_pretrained(base)


def on_full_disk(base: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 250_000, 250_000))


def losing_a_tensor(base: Path, patch: pytest.MonkeyPatch) -> None:
    """As a library would that writes something other than what it was given, at the end and not in checkpoints."""
    from safetensors.torch import load_file, save_file

    def save_pretrained(self, folder, **given):
        save(self, folder, **given)
        if not given:
            file = Path(folder) / "model.safetensors"
            save_file({key: value + key.endswith("norm.weight") for key, value in load_file(file).items()}, file)

    save = LlamaForCausalLM.save_pretrained
    patch.setattr(LlamaForCausalLM, "save_pretrained", save_pretrained)


# What would be lost at the end of a full training: how the base or the disk is spoiled, fragments of the line, whether steps come before it.
UNSAVABLE = {
    "generation": (spoiled("generation_config.json", pad_token_id=None, do_sample=False, temperature=0.6), ["could not be saved", "temperature"], False),
    "adapter in the base": (with_adapter, ["adapter_config.json and adapter_model.safetensors", "adapter=THAT_FOLDER"], False),
    "full disk": (on_full_disk, ["250 kB free", "this training writes", "trainer.save_total_limit=1"], False),
    "other bytes": (losing_a_tensor, ["differs from what was trained", "kept as model.rejected"], True),
}  # fmt: skip


@cases("how", UNSAVABLE)
def test_a_full_training_that_could_not_be_saved_is_refused_before_its_first_step(
    how, cli, tmp_path, on_tiny, monkeypatch
):
    base = build_llama(tmp_path / "base")
    spoil, fragments, trains = UNSAVABLE[how]
    spoil(base, monkeypatch)
    check_told(cli(*on_tiny(base), *TINY_STEPS, "lora=none", "trainer.save_steps=1"), [fragments])
    assert bool(list(tmp_path.glob("outputs/**/metrics.jsonl"))) == trains
    assert not list(tmp_path.glob("outputs/**/model"))


def test_the_classic_gpt2_adapter_has_the_classic_size():
    """12 layers × 8 × (768 + 2304): the count of the classic article's config, which the article itself misstates."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
        adapted = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)
        )
    trainable, total = adapted.get_nb_trainable_parameters()
    assert (trainable, f"{trainable / total:.4%}") == (294_912, "0.2364%")


def test_a_sweep_makes_a_folder_a_cell_and_one_bad_cell_stops_no_other(cli, tmp_path, llama, on_tiny):
    outcome = cli("-m", *on_tiny(llama), *TINY_STEPS, "lora.r=2,0,4")
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("outputs/sweeps/*/*/record.json"))]
    assert outcome.code == 1 and "lora.r=0" in outcome.err
    assert [record["status"] for record in records] == ["completed", "completed"]
    said = outcome.err + outcome.out
    for text in ("cell 1 of 2: lora.r=2", "cell 2 of 2: lora.r=4", "best   loss", "report outputs", "next:"):
        assert text in said, said
    again = cli("-m", *on_tiny(llama), *TINY_STEPS, "lora.r=2,0,4")
    assert again.code == 1 and "2 of 3 cells are done" in again.err and "cell 1 of" not in again.err
