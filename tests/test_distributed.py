"""Two processes on the CPU: what they learn together is what one learns alone, and it is saved whole."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from conftest import build_llama, cli_here, jsonl
from encoders import build_bert, build_t5, on_texts, on_words
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


def check_equal(ours, theirs, atol=2e-5):
    """Tensors that were summed in another order."""
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=atol, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def interrupt(run, name, *gone):
    """A copy of the run that ends before the files `gone` were written."""
    torn = run.run_dir.parent / name
    shutil.copytree(run.run_dir, torn)
    (torn / "record.json").write_text(json.dumps(run.record() | {"status": "running"}))
    for file in gone:
        shutil.rmtree(torn / file)
    return f"action.resume={torn}"


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_same_batch(where, together, alone):
    run = cli_here(where, *together, *on("ddp"))
    assert run.code == 0, run.err
    record, one = run.record(), alone.record()
    assert record["spread"] == {"strategy": "ddp", "processes": 2, "machines": 1} and "2 processes" in record["device"]
    check_equal(adapter(run), adapter(alone))
    assert record["metrics"]["after"]["loss"] == pytest.approx(one["metrics"]["after"]["loss"], rel=1e-4)
    assert not list(run.run_dir.glob("*.log")) and not (run.run_dir / "outcome.json").exists()
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sharded_weights_are_saved_whole(where, together, alone):
    run = cli_here(where, *together, *on("fsdp"))
    assert run.code == 0, run.err
    check_equal(adapter(run), adapter(alone))
    ours, theirs = (one.run_dir / "checkpoints/checkpoint-4" for one in (run, alone))
    check_equal(load_file(ours / "adapter_model.safetensors"), load_file(theirs / "adapter_model.safetensors"))
    states = [torch.load(one / "optimizer.pt", weights_only=True)["state"] for one in (ours, theirs)]
    check_equal(*({f"{number} {key}": one for number, values in state.items() for key, one in values.items()} for state in states))  # fmt: skip
    same = {"rng_state.pth"} ^ {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == same | {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }  # nothing of the base
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
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_resumed_is_uninterrupted(where, together, strategy):
    given = [*together, *on(strategy), "lora.lora_dropout=0.1", "trainer.lr_scheduler_type=constant"]
    whole = cli_here(where, *given, f"hydra.run.dir=outputs/train/whole-{strategy}")
    assert whole.code == 0, whole.err
    killed = {
        "last": ["adapter"],
        "before": ["adapter", "checkpoints/checkpoint-6"],
    }  # after its last step, and before it
    for name, gone in killed.items():
        resumed = cli_here(where, *given, interrupt(whole, f"{name}-{strategy}", *gone))
        assert resumed.code == 0, resumed.err
        weights = [one.run_dir / "adapter/adapter_model.safetensors" for one in (whole, resumed)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_resumes_what_two_began(where, together, llama, on_tiny, alone):
    """The best checkpoint is found and loaded by all of them."""
    validated = ["task.data.num_validation_rows=8", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.load_best_model_at_end=true",
                 "trainer.save_total_limit=2"]  # fmt: skip
    begun = cli_here(where, *together, *on("fsdp"), *validated)
    assert begun.code == 0, begun.err
    resume = interrupt(begun, "begun-by-two", "adapter", "checkpoints/checkpoint-6")
    one = [*on_tiny(llama), *STEPS, *validated]
    ended = [
        cli_here(where, *given, *validated, resume)
        for given in ([*one, "trainer.per_device_train_batch_size=4"], [*together, *on("ddp")])
    ]
    for run in ended:
        assert run.code == 0, run.err
        check_equal(adapter(run), adapter(begun))
        assert run.record()["training"]["best_step"] == begun.record()["training"]["best_step"]
    assert "1 instead of 2 processes" in ended[0].err
    refused = cli_here(where, *one, "trainer.per_device_train_batch_size=2", resume)
    assert refused.code == 1 and "type trainer.per_device_train_batch_size=4" in refused.err


def preferences(kind, llama, where):
    """Overrides of a run on pairs, on judged answers, or on prompts with a reward."""
    rows = [
        {"q": f"Is {n} even?", "good": "yes", "bad": "no", "a": "yes" if n % 2 else "no", "ok": bool(n % 2)}
        for n in range(10, 50)  # prompts of as many tokens: TRL averages ORPO's likelihood over those of each process
    ]
    columns = {
        "kto": ["task.messages_column=null", "task.completion_template='{a}'", "task.desirable_column=ok"],
        "grpo": ["task.completion_template='{a}'", "task.data.label_column=null", "task.data.labels=null", "task.data.balance=false",
                 "task.objective.max_completion_length=8", "task.objective.num_generations=2", "task.objective.rewards=[matches_pattern]",
                 "task.objective.reward_weights=null", "task.objective.pattern='^[a-m]'"],
    }.get(kind, ["task.messages_column=null", "task.chosen_column=good", "task.rejected_column=bad"])  # fmt: skip
    return [
        "model=pretrained", f"model.name_or_path={llama}", f"task={kind}", "task.data.source=file", "task.prompt_template='{q}'",
        f"task.data.path={jsonl(where / 'rows.jsonl', rows)}", "task.data.num_test_rows=8", "task.max_length=64", *columns,
        "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def kinds(where, llama):
    """Task or objective → overrides. A dropout would draw other numbers in each process."""
    bert, t5 = build_bert(where / "bert"), build_t5(where / "t5")
    for file in (bert / "config.json", t5 / "config.json"):
        none = dict.fromkeys(["dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"], 0.0)
        file.write_text(json.dumps(json.loads(file.read_text()) | none))
    words = ["el", "la", "libro", "muy", "bueno", "malo"]
    pairs = jsonl(where / "translated.jsonl", [{"en": f"{a} {b}", "es": b} for a in words for b in words])
    translation = [
        "model=pretrained", f"model.name_or_path={t5}", "task=translation", "task.data.source=file", f"task.data.path={pairs}",
        "task.prompt_template='{en}'", "task.completion_template='{es}'", "task.data.num_test_rows=8", "device=cpu", "device.dtype=float32",
    ]  # fmt: skip
    others = {
        "seq_cls": on_texts(bert, where),
        "token_cls": on_words(bert, where),
        "seq2seq": translation,
    }
    return others | {kind: preferences(kind, llama, where) for kind in ("dpo", "orpo", "kto", "reward", "grpo")}


def learn(where, given, strategy, *more):
    """A run of few steps: of two processes, or with `strategy` None of one on the same batches."""
    spread = [*on(strategy), *batches(2, 1)] if strategy else batches(4, 1)
    run = cli_here(where, *given, *STEPS, "trainer.max_steps=4", "action.num_samples=0", *spread, *more)
    assert run.code == 0, run.err
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "orpo", "kto", "reward", "seq_cls", "token_cls", "seq2seq"])
def test_each_objective_is_learned_as_by_one_process(where, kinds, kind):
    one = learn(where, kinds[kind], None)
    for strategy in ("ddp", "fsdp"):
        run = learn(where, kinds[kind], strategy)
        check_equal(adapter(run), adapter(one), atol=1e-4)
        assert logged(run, "loss") == pytest.approx(logged(one, "loss"), rel=1e-4)


@pytest.mark.slow
def test_the_reference_of_a_sharded_training_is_the_parent(where, kinds):
    parent = learn(where, kinds["dpo"], None)
    runs = [learn(where, kinds["dpo"], strategy, f"adapter={parent.run_dir}") for strategy in ("fsdp", None)]
    check_equal(adapter(runs[0]), adapter(runs[1]), atol=1e-4)
    assert [run.record()["reference"]["model"] for run in runs] == ["parent", "parent"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_answers_are_sampled_by_each_process(where, kinds, strategy):
    """GRPO: each process draws its own, of other lengths, so that no other number of processes learns the same; a resumed run does."""
    whole = learn(where, kinds["grpo"], strategy)
    resumed = learn(
        where, kinds["grpo"], strategy, interrupt(whole, f"grpo-{strategy}", "adapter", "checkpoints/checkpoint-4")
    )
    check_bytes = [one.run_dir / "adapter/adapter_model.safetensors" for one in (whole, resumed)]
    assert check_bytes[0].read_bytes() == check_bytes[1].read_bytes()
    assert len(set(logged(whole, "reward"))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "nf4"])
def test_a_whole_model_and_one_in_four_bits_are_sharded(where, on_tiny, kind):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    wide = build_llama(where / f"wide-{kind}", hidden_size=64, intermediate_size=128)
    given = [
        *on_tiny(wide),
        *(["lora=none", "trainer.learning_rate=1e-3"] if kind == "full" else ["model.quantization=nf4"]),
    ]
    whole, one = learn(where, given, "fsdp"), learn(where, given, None)
    resumed = learn(
        where,
        given,
        "fsdp",
        interrupt(whole, f"torn-{kind}", "model" if kind == "full" else "adapter", "checkpoints/checkpoint-4"),
    )
    file = "model/model.safetensors" if kind == "full" else "adapter/adapter_model.safetensors"
    ours, theirs, again = (load_file(run.run_dir / file) for run in (whole, one, resumed))
    check_equal(ours, theirs)
    assert all(torch.equal(value, again[key]) for key, value in ours.items())


@pytest.mark.slow
def test_a_fault_in_the_workers_is_one_line(where, together):
    run = cli_here(where, *together, *on("ddp"), "lora.target_modules=[nosuch]")
    assert run.code == 1 and "Traceback" not in run.err
    assert run.err.count("lora.target_modules=nosuch") == 1
    assert run.run_dir is None


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "status"), [(signal.SIGTERM, "interrupted"), (signal.SIGKILL, "running")])
def test_an_interrupt_ends_every_process(where, together, ending, status):
    folder = f"outputs/train/{status}"
    started = subprocess.Popen(
        [sys.executable, "-m", "peftrun", *together, *on("ddp"), "trainer.max_steps=100000", f"hydra.run.dir={folder}"],
        cwd=where, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = where / folder / "metrics.jsonl"
    deadline = time.time() + 400
    while not metrics.is_file() and time.time() < deadline:
        time.sleep(0.2)
    started.send_signal(ending)
    started.wait(timeout=60)
    assert json.loads((metrics.parent / "record.json").read_text())["status"] == status
    deadline = time.time() + 60  # of a command that was killed the launcher ends once its workers have
    while (
        left := subprocess.run(["pgrep", "-f", folder], stdout=subprocess.PIPE, check=False).stdout.split()
    ) and time.time() < deadline:
        time.sleep(0.5)
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
        (["device=fsdp", "lora=adalora"], "lora=adalora: needs whole weights"),
        pytest.param(
            ["device=fsdp", "model.quantization=int8"],
            "type model.quantization=nf4, or device=ddp",
            marks=pytest.mark.skipif(
                find_spec("bitsandbytes") is None, reason="a second line says that the package is missing"
            ),
        ),
    ],
)
def test_what_cannot_be_spread_is_refused(cli, tmp_path, llama, on_tiny, overrides, said):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    check_refused(cli, tmp_path, [*given, *overrides], [said])
