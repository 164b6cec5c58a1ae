"""lm-evaluation-harness on the base and with an adapter: the numbers are those of a computation by hand, and of the harness alone."""

import json

import pytest
import torch
from conftest import cli_here
from faults import check_failed, check_refused

from peftrun.tasks.lm_eval import compare_paired

pytestmark = pytest.mark.slow

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: ["no", "yes"]
doc_to_target: completion
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def rows(where):
    """Questions whose answer is always no: what a tiny model can learn."""
    found = [{"prompt": f"Is {n} even?", "completion": "no"} for n in range(1, 80, 2)]
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return found


@pytest.fixture(scope="module")
def tasks(where, rows):
    folder = where / "tasks"
    folder.mkdir()
    (folder / "even.yaml").write_text(TASK.format(name="even", rows=where / "rows.jsonl"))
    return folder


@pytest.fixture(scope="module")
def learned(where, rows, llama):
    """An adapter that was trained on that very task."""
    given = [
        "task=instruction", f"task.data.path={where / 'rows.jsonl'}", "task.data.num_test_rows=8", "task.max_length=64",
        "task.prompt_template=null", "task.completion_template='{prompt} {completion}'", "task.loss_on=all",
        "trainer.max_steps=30", "trainer.warmup_steps=0", "trainer.learning_rate=1e-2", "trainer.save_strategy=no",
    ]  # fmt: skip
    run = cli_here(where, *on(llama), *given)
    assert run.code == 0, run.err
    return run.run_dir


@pytest.fixture(scope="module")
def measured(where, tasks, learned, llama):
    return cli_here(where, *asked(llama, tasks), f"adapter={learned}", "task.lm_eval.log_samples=true")


def on(model):
    return ["model=pretrained", f"model.name_or_path={model}", "device=cpu", "device.dtype=float32"]


def asked(model, tasks, *more):
    given = ["action=evaluate", "task=lm_eval", "task.lm_eval.tasks=[even]", f"task.lm_eval.include_path={tasks}"]
    return [*on(model), *given, *more]


def loaded(model, adapter=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter:
        net = PeftModel.from_pretrained(net, adapter / "adapter")
    return net.eval(), AutoTokenizer.from_pretrained(model)


@torch.no_grad()
def by_hand(net, tokenizer, rows):
    """The share of rows whose own answer is the likelier of the two."""

    def nats(prompt, answer):
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = before + tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        scores = net(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return sum(scores[place - 1, ids[place]].item() for place in range(len(before), len(ids)))

    best = [max(("no", "yes"), key=lambda word: nats(row["prompt"], word)) for row in rows]
    return sum(word == row["completion"] for word, row in zip(best, rows, strict=True)) / len(rows)


def test_both_sides_are_what_a_computation_by_hand_finds(measured, llama, learned, rows):
    assert measured.code == 0, measured.err
    metrics = measured.record()["metrics"]
    assert metrics["base"]["even/acc"] == by_hand(*loaded(llama), rows)
    assert metrics["adapter"]["even/acc"] == by_hand(*loaded(llama, learned), rows) == 1.0
    assert metrics["base"]["even/acc"] < 1.0
    assert "fatal:" not in measured.err and "Traceback" not in measured.err


def test_the_harness_alone_finds_the_same_on_peft(measured, llama, learned, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    net, tokenizer = loaded(llama, learned)
    known = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(HFLM(pretrained=net, tokenizer=tokenizer, batch_size=4), tasks=["even"], task_manager=known)
    metrics, told = measured.record()["metrics"]["adapter"], measured.record()["lm_eval"]
    assert metrics["even/acc"] == found["results"]["even"]["acc,none"]
    assert told["stderr"]["adapter"]["even/acc"] == found["results"]["even"]["acc_stderr,none"]


def test_the_difference_is_told_with_its_significance(measured):
    record = measured.record()
    told = record["lm_eval"]["difference"]["even/acc"]
    assert told["value"] == pytest.approx(
        record["metrics"]["adapter"]["even/acc"] - record["metrics"]["base"]["even/acc"]
    )
    assert told["rows"] == 40 and told["test"] == "McNemar's exact test" and told["worse"] == 0
    assert told["p"] == pytest.approx(2 * 0.5 ** told["better"])
    (row,) = [line for line in measured.out.splitlines() if line.startswith("even/acc")]
    assert "→ 1.0000" in row and "McNemar" in row
    assert record["lm_eval"]["n_samples"]["even"]["effective"] == 40 and record["lm_eval"]["lm_eval"]
    assert len(record["adapters"]) == 1 and record["adapters"][0]["effect"]


def test_several_adapters_are_measured_side_by_side_and_the_active_one_alone_where_it_is_named(
    where, tasks, learned, llama, measured
):
    both = f"adapter={{one: {learned}, two: {learned}}}"
    run = cli_here(where, *asked(llama, tasks), both)
    assert run.code == 0, run.err
    metrics, alone = run.record()["metrics"], measured.record()["metrics"]
    assert metrics["base"] == alone["base"] and metrics["one"] == metrics["two"] == alone["adapter"]
    told = run.record()["lm_eval"]["difference"]
    assert told["one"] == told["two"] == measured.record()["lm_eval"]["difference"]
    shown = [line.split("  ")[0].strip() for line in run.out.splitlines() if "even/acc" in line]
    assert shown == ["base: even/acc", "one: even/acc", "two: even/acc"]
    assert any(line.split() == ["rows", "even", "40"] for line in run.out.splitlines())
    named = cli_here(where, *asked(llama, tasks, "task.lm_eval.limit=4"), both, "active_adapter=two")
    assert named.record()["metrics"].keys() == {"base", "adapter"}
    taken = cli_here(where, *asked(llama, tasks), f"adapter={{base: {learned}, two: {learned}}}")
    assert taken.code == 1 and "adapter.base: is the name of the base model without any adapter" in taken.err


def test_a_file_of_tasks_that_is_broken_is_named_with_its_place(cli, tmp_path, llama):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "even.yaml").write_text("task: even\ndoc_to_choice: [no, yes\nmetadata: {version: 1.0}\n")
    told = ["even.yaml, line 3, column 9: is not YAML", "fix the file"]
    check_failed(cli, tmp_path, asked(llama, tmp_path / "own"), told)


def test_samples_are_kept_where_asked_for(measured):
    found = [json.loads(line) for line in (measured.run_dir / "samples.jsonl").read_text().splitlines()]
    assert len(found) == 80 and {row["side"] for row in found} == {"base", "adapter"}
    mean = sum(row["acc"] for row in found if row["side"] == "base") / 40
    assert mean == measured.record()["metrics"]["base"]["even/acc"]


def test_the_base_alone_with_few_shots_and_a_limit(where, tasks, llama, measured):
    run = cli_here(where, *asked(llama, tasks, "task.lm_eval.limit=10", "task.lm_eval.num_fewshot=1"))
    assert run.code == 0, run.err
    record = run.record()
    assert record["lm_eval"]["n_samples"]["even"]["effective"] == 10 and record["lm_eval"]["n_shot"]["even"] == 1
    assert record["metrics"].keys() == {"base"} and not (run.run_dir / "samples.jsonl").exists()
    kept = ["task.lm_eval.limit=4", "task.lm_eval.log_samples=true"]
    talk = cli_here(where, *asked(llama, tasks, *kept, "task.lm_eval.apply_chat_template=true"))
    assert talk.code == 0, talk.err
    assert "<|im_start|>user" in (talk.run_dir / "samples.jsonl").read_text()


def test_a_model_without_a_template_cannot_be_talked_to(where, tasks, gpt2):
    run = cli_here(where, *asked(gpt2, tasks, "task.lm_eval.apply_chat_template=true"))
    assert run.code == 1 and "task.lm_eval.apply_chat_template=true: this model has no chat template" in run.err


def test_rows_that_changed_are_read_anew(where, tasks, llama):
    """Of the same length and time, which datasets takes for the same file."""
    import os

    file = where / "changing.jsonl"
    (tasks / "changing.yaml").write_text(TASK.format(name="changing", rows=file))
    found = []
    for answer in ('"yes"', '"no" '):
        file.write_text("".join(f'{{"prompt": "Is {n} even?", "completion": {answer}}}\n' for n in range(8)))
        os.utime(file, (1, 1))
        run = cli_here(where, *asked(llama, tasks, "task.lm_eval.tasks=[changing]"))
        assert run.code == 0, run.err
        found.append(run.record()["metrics"]["base"]["changing/acc"])
    assert sum(found) == 1.0


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (["action=train"], ["task=lm_eval", "only for action=evaluate", "action=train"]),
        (["action=plan"], ["task=lm_eval", "action=plan"]),
        (["task.lm_eval.tasks=[]"], ["task.lm_eval.tasks=[]", "task.lm_eval.tasks=[arc_easy]"]),
        (["task.lm_eval.tasks=???"], ["task.lm_eval.tasks is not set", "type task.lm_eval.tasks=[arc_easy]"]),
        (["task.lm_eval.limit=0"], ["task.lm_eval.limit=0"]),
        (["task.lm_eval.include_path=nowhere"], ["task.lm_eval.include_path=nowhere", "not a folder with YAML files"]),
        (["task.lm_eval=null"], ["task.type=lm_eval", "task.lm_eval.tasks=[arc_easy]"]),
        (["task.data.adapter_column=who"], ["task.data.adapter_column=who", "of a language model with adapters"]),
    ],
)
def test_what_cannot_be_is_refused(cli, tmp_path, llama, tasks, given, fragments):
    kept = [one for one in asked(llama, tasks) if one.split("=")[0] not in {text.split("=")[0] for text in given}]
    kept = [one for one in kept if not (given[0] == "task.lm_eval=null" and one.startswith("task.lm_eval."))]
    check_refused(cli, tmp_path, [*kept, *given], fragments)


def test_a_package_that_is_not_there_is_named(cli, tmp_path, monkeypatch, llama, tasks):
    monkeypatch.setattr("peftrun.checks.tasks.find_spec", lambda name: None)
    check_refused(cli, tmp_path, asked(llama, tasks), ["lm_eval", "pip install 'peftrun[lm_eval]'"])


def test_a_task_that_is_unknown_is_named_with_its_neighbour(where, tasks, llama):
    run = cli_here(where, *asked(llama, tasks, "task.lm_eval.tasks=[arc_eazy]"))
    assert run.code == 1 and "there is no task arc_eazy; did you mean arc_easy?" in run.err


def test_figures_that_are_no_choices_are_compared_as_pairs():
    import numpy as np

    found = compare_paired(np.array([0.1, 0.4, 0.3]), np.array([0.2, 0.6, 0.3]))
    assert found.test == "paired t test" and found.value == pytest.approx(0.1) and found.better == 2
    assert found.stderr == pytest.approx(0.1 / 3**0.5) and 0 < found.p < 1
    same = compare_paired(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert same.p == 1.0 and same.value == 0 and same.stderr == 0
