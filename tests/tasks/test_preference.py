"""Preferences and rewards: each objective moves its own measure, and its adapter lives on as any other."""

import json
import math
import shutil

import pytest
import torch
from cases import cases
from conftest import cli_here, jsonl
from faults import check_refused

import peftrun
from peftrun import tasks
from peftrun.checks.metric_names import list_metric_names
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.config.schema.objectives import GrpoObjective
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.tasks import rewards
from peftrun.tasks.log_likelihood import compare_with_reference, compute_log_likelihoods

NUMBERS = range(40)
KINDS = ["dpo", "orpo", "kto", "reward", "grpo"]
MOVED = {"dpo": "margin", "orpo": "likelihood_accuracy", "kto": "auc", "reward": "margin", "grpo": "reward"}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("preferences")


@pytest.fixture(scope="module")
def files(where):
    """Of two answers "yes" is always the better one."""
    asked = [f"Is {n} even?" for n in NUMBERS]
    pairs = [{"q": text, "good": "yes", "bad": [{"role": "assistant", "content": "no"}]} for text in asked]
    judged = [
        {
            "talk": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes" if n % 2 else "no"}],
            "ok": bool(n % 2),
        }
        for n, text in enumerate(asked)
    ]
    return {
        "pairs": jsonl(where / "pairs.jsonl", pairs),
        "judged": jsonl(where / "judged.jsonl", judged),
        "asked": jsonl(where / "asked.jsonl", [{"q": text, "a": "yes"} for text in asked]),
    }


def overrides(kind, llama, files):
    name = {"kto": "judged", "grpo": "asked"}.get(kind, "pairs")
    columns = {
        "kto": ["task.messages_column=talk", "task.desirable_column=ok"],
        "grpo": ["task.prompt_template='{q}'", "task.completion_template='{a}'", "task.data.label_column=null", "task.data.labels=null",
                 "task.data.balance=false", "task.objective.max_completion_length=4", "task.objective.num_generations=4",
                 "task.objective.rewards=[matches_pattern]", "task.objective.reward_weights=null",
                 "task.objective.pattern='^[a-m]'"],
    }.get(kind, ["task.messages_column=null", "task.prompt_template='{q}'", "task.chosen_column=good", "task.rejected_column=bad"])  # fmt: skip
    return [
        "model=pretrained", f"model.name_or_path={llama}", f"task={kind}", "task.data.source=file", f"task.data.path={files[name]}",
        "task.data.num_test_rows=8", "task.max_length=64", *columns, "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2",
        "trainer.logging_steps=2", "trainer.warmup_steps=0", "trainer.save_steps=4",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def learned(request, where, llama, files):
    given = overrides(request.param, llama, files)
    run = cli_here(where, *given, f"trainer.max_steps={24 if request.param == 'grpo' else 8}")
    assert run.code == 0, run.err
    return request.param, run, given


def test_each_objective_moves_its_own_measure(learned):
    kind, run, given = learned
    before, after = (run.record()["metrics"][when] for when in ("before", "after"))
    assert after.keys() == set(list_metric_names(build_spec(compose.compose_run(given).cfg).task))
    assert after[MOVED[kind]] > before[MOVED[kind]] or after[MOVED[kind]] == 1.0
    if kind in ("dpo", "kto"):
        assert before["loss"] == pytest.approx(
            math.log(2) if kind == "dpo" else 0.5, abs=1e-5
        )  # nothing is preferred yet
    if kind in ("dpo", "reward"):
        assert after["preference_accuracy"] == 1.0 and after["loss"] < 0.5 * before["loss"]


def test_the_adapter_is_saved_alone_and_reloads_as_it_was(learned, where):
    _, run, given = learned
    assert not list((run.run_dir / "adapter").glob("*/adapter_config.json"))  # no copy of its start
    again = cli_here(where, *given, "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    record = again.record()
    assert record["adapters"][0]["saved_difference"] == 0.0
    assert record["metrics"] == pytest.approx(run.record()["metrics"]["after"], rel=1e-4)


@pytest.mark.slow
def test_it_merges_and_the_merge_is_proved(learned, where):
    kind, run, given = learned
    merged = cli_here(
        where,
        *given,
        "action=merge",
        f"adapter={run.run_dir}",
        *([] if kind == "grpo" else ["action.num_eval_rows=16"]),
    )
    assert merged.code == 0, merged.err
    assert merged.record()["merge"]["max_logit_difference"] < 1e-3
    if kind != "grpo":
        assert merged.record()["merge"]["held_out_rows"] == 8


@pytest.mark.slow
def test_language_models_generate(learned, where):
    kind, run, given = learned
    said = cli_here(
        where, *given, "action=generate", f"adapter={run.run_dir}", "action.prompt=hi", "action.max_new_tokens=3"
    )
    if kind == "reward":
        assert said.code == 1 and "Traceback" not in said.err
    else:
        assert said.code == 0, said.err


STARTS = {
    "fresh": [],
    "further": ["adapter=outputs/train/fresh"],
    "stacked": ["adapter=outputs/train/fresh", "stack=true"],
}


@pytest.mark.slow
@cases("start", STARTS)
def test_dpo_resumed_is_dpo_uninterrupted(where, llama, files, start):
    given = [*overrides("dpo", llama, files), "trainer.max_steps=4", "trainer.save_steps=2", *STARTS[start]]
    whole = cli_here(where, *given, f"hydra.run.dir=outputs/train/{start}")
    assert whole.code == 0, whole.err
    torn = where / f"outputs/train/{start}-torn"
    shutil.copytree(where / f"outputs/train/{start}", torn)
    shutil.rmtree(torn / "checkpoints" / "checkpoint-4")
    shutil.rmtree(torn / "adapter")
    record = json.loads((torn / "record.json").read_text())
    (torn / "record.json").write_text(json.dumps(record | {"status": "running"}))
    resumed = cli_here(where, *given, f"action.resume={torn}", f"hydra.run.dir=outputs/train/{start}-resumed")
    assert resumed.code == 0, resumed.err
    one, other = (
        (where / f"outputs/train/{name}/adapter/adapter_model.safetensors").read_bytes()
        for name in (start, f"{start}-resumed")
    )
    assert one == other


@pytest.mark.slow
def test_an_adapter_that_starts_anywhere_is_held_against_the_base(cli, where, llama, files):
    """TRL's own reference would be a copy of the start, and the first loss log 2 whatever that is."""
    run = cli(
        *overrides("dpo", llama, files),
        "lora.init_lora_weights=false",
        "trainer.max_steps=2",
        "trainer.logging_steps=1",
    )
    assert run.code == 0, run.err
    first = json.loads((run.run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["loss"] - math.log(2)) > 1e-4


def test_likelihoods_are_those_of_a_plain_forward_pass(llama):
    spec = build_spec(
        compose.compose_run(
            ["model=pretrained", f"model.name_or_path={llama}", "device=cpu", "device.dtype=float32"]
        ).cfg
    )
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    prompts, completions = [[5, 6, 7], [8], [9, 10, 11, 12]], [[20, 21], [22, 23, 24, 25], [26]]
    found = compute_log_likelihoods(base.model, base.tokenizer.pad_token_id, prompts, completions, 2)
    for prompt, completion, value in zip(prompts, completions, found, strict=True):
        logs = base.model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = sum(logs[len(prompt) - 1 + i, token] for i, token in enumerate(completion))
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)


def test_dpo_loss_is_the_formula(learned, llama, files):
    kind, run, given = learned
    if kind != "dpo":
        pytest.skip("DPO's")
    spec = build_spec(compose.compose_run([*given, f"adapter={run.run_dir}", "action=reload"]).cfg)
    net, tokenizer = peftrun.load_adapter(str(run.run_dir), *given)
    rows = tasks.import_task_module("preference").load_rows(spec.task, tokenizer)
    assert (
        len(rows.held_out) == 8 and tokenizer.decode(rows.build_training_rows()[0]["chosen_ids"]) == "yes<|im_end|>\n"
    )
    spec.task.objective.beta = 3.0
    found = tasks.import_task_module("preference").evaluate(net, tokenizer, rows.held_out, 4, spec.task)
    prompts = [row.prompt for row in rows.held_out]
    (_, gained), (_, lost) = (
        compare_with_reference(net, tokenizer.pad_token_id, prompts, [getattr(row, side) for row in rows.held_out], 1)
        for side in ("chosen", "rejected")
    )
    each = [math.log1p(math.exp(-3.0 * margin)) for margin in (gained - lost).tolist()]
    assert found["loss"] == pytest.approx(sum(each) / len(each), rel=1e-4)


@cases(
    "name, said, true, expected",
    [
        ("exact_answer", " Yes.", "yes", 1.0),
        ("exact_answer", "yes indeed", "yes", 0.0),
        ("contains_answer", "yes indeed", "yes", 1.0),
        ("matches_pattern", "a1", "", 1.0),
        ("matches_pattern", "a", "", 0.0),
        ("valid_json", '{"a": 1}', "", 1.0),
        ("valid_json", "{a", "", 0.0),
        ("near_length", "1234", "", 1.0),
        ("near_length", "12", "", 0.5),
        ("near_length", "1" * 20, "", 0.0),
    ],
)
def test_rewards(name, said, true, expected):
    objective = GrpoObjective(
        name="grpo", beta=0.0, num_generations=2, max_completion_length=4, temperature=1.0, top_p=1.0, epsilon=0.2,
        num_iterations=1, loss_type="grpo", scale_rewards="group", reference=None, rewards=[name], reward_weights=None, pattern=r"\d", target_length=4,
    )  # fmt: skip
    assert rewards.get_reward_function(name, objective)(said, true) == expected


WRONG = {
    "no adapter": (["lora=none"], ["lora=none: ", "type lora=lora"]),
    "an initialization that changes the base model": (
        ["lora=pissa"],
        ["lora.init_lora_weights=pissa_niter_16: ", "unchanged base model"],
    ),
    "dropout": (["lora.lora_dropout=0.1"], ["lora.lora_dropout=0.1: TRL turns dropout off"]),
    "smoothing that nothing reads": (
        ["task.objective.label_smoothing=0.1"],
        ["task.objective.label_smoothing=0.1: is only used by"],
    ),
    "rows by length": (
        ["trainer.train_sampling_strategy=group_by_length"],
        ["trainer.train_sampling_strategy=group_by_length: "],
    ),
    "packing": (["trainer.packing=true"], ["trainer.packing=true: "]),
    "no chosen column": (["task.chosen_column=null"], ["task.chosen_column is not set"]),
    "an unknown column": (["task.chosen_column=better"], ["task.chosen_column: the data has no column 'better'"]),
    "an objective of another kind": (
        ["task.type=causal_lm", "task.completion_template='{good}'"],
        ["task.objective: "],
    ),
    "a wrong value": (["task.objective.beta=-1"], ["task.objective.beta=-1"]),
}


@cases("case", WRONG, every=3)
def test_what_cannot_be_is_refused_in_a_line(cli, tmp_path, llama, files, case):
    more, said = WRONG[case]
    found = cli(*overrides("dpo", llama, files), *more)
    assert found.code == 1 and "Traceback" not in found.err
    for text in said:
        assert text in found.err


ROWS = {
    "same answers": ({"q": "a", "good": "x", "bad": "x"}, "the same answer"),
    "an empty answer": ({"q": "a", "good": "x", "bad": " "}, "column bad is empty"),
    "an empty prompt": ({"q": "", "good": "x", "bad": "y"}, "column q is empty"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_are_named(cli, tmp_path, llama, files, case):
    row, said = ROWS[case]
    good = [{"q": f"{n}", "good": "x", "bad": "y"} for n in range(20)]
    file = jsonl(tmp_path / "rows.jsonl", [*good, row])
    found = cli(*overrides("dpo", llama, files), f"task.data.path={file}")
    assert found.code == 1 and "row 21" in found.err and said in found.err


def test_a_judgement_must_be_true_or_false(cli, tmp_path, llama, files):
    rows = [{"q": f"{n}", "a": "x", "ok": "maybe"} for n in range(20)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    more = [
        "task.messages_column=null",
        "task.prompt_template='{q}'",
        "task.completion_template='{a}'",
        f"task.data.path={file}",
    ]
    found = cli(*overrides("kto", llama, files), *more)
    assert found.code == 1 and "row 1: ok=maybe is neither true nor false" in found.err


def test_prompts_with_a_label_are_balanced(cli, tmp_path, llama, files):
    rows = [{"q": f"Is {n} even?", "of": str(int(n % 4 == 0))} for n in range(60)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    labelled = ["task.data.label_column=of", "task.data.balance=true", "task.completion_template='{label}'"]
    given = [
        one
        for one in overrides("grpo", llama, files)
        if not one.startswith(("task.data.label", "task.data.bal", "task.completion_template"))
    ]
    found = cli(*given, *labelled, f"task.data.path={file}", "task.data.num_test_rows=6", "action=evaluate")
    assert found.code == 0, found.err
    assert found.record()["data"]["train_rows"] == 30 - 6


def test_grpo_needs_batches_of_whole_groups(cli, tmp_path, llama, files):
    check_refused(
        cli,
        tmp_path,
        [*overrides("grpo", llama, files), "task.objective.num_generations=3"],
        ["task.objective.num_generations=3", "must divide"],
    )
