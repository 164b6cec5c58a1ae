"""Rewards and metrics in Python files of the user: what they are called with, what they decide, and how a bad one is refused."""

import json
from pathlib import Path

import pytest
from cases import cases
from conftest import TINY_STEPS, jsonl
from faults import check_failed, check_refused
from safetensors.torch import load_file
from team_packages import install, write

import peftrun
from peftrun.errors import ConfigError
from peftrun.io import atomic_files
from peftrun.tasks import own_functions
from peftrun.tasks.rows.causal_lm import Row

# In TRL's form: whatever is not named is taken as **kwargs.
REWARDS = """
import json
from pathlib import Path

def early_letter(prompts, completions, **kwargs):
    Path(__file__).with_name("called.json").write_text(json.dumps({
        "prompts": prompts, "completions": completions, "completion_ids": kwargs["completion_ids"], "rows": kwargs["rows"],
        "level": kwargs["level"], "answer": kwargs["answer"], "training": kwargs["trainer_state"] is not None,
    }))
    return [float("a" <= text[:1] <= "m") for text in completions]

async def by_level(completions, level):
    return [0.5 if number else True for number in level]
"""
METRICS = """
def vowels(predictions):
    texts = "".join(predictions)
    return sum(texts.count(letter) for letter in "aeiou") / max(len(texts), 1)

def lengths(predictions, references, rows):
    return {"longest": max(map(len, predictions)), "asked": sum(row["prompt"].startswith("Is") for row in rows) / len(rows)}
"""
WATCHED = [
    "task.data.num_validation_rows=8", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2",
    "trainer.load_best_model_at_end=true", "trainer.max_steps=12", "trainer.learning_rate=3e-2", "task.max_new_tokens=12",
    "trainer.save_total_limit=null",
]  # fmt: skip


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    rows = atomic_files.read_json_lines(run / "metrics.jsonl")
    return {row["step"]: row for row in rows if "eval_loss" in row}


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def is_same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(bool((first[key] == second[key]).all()) for key in first)


def test_a_reward_of_ones_own_is_called_as_by_trl_and_is_learned(cli, tmp_path, llama):
    (tmp_path / "rewards.py").write_text(REWARDS)
    file = jsonl(tmp_path / "asked.jsonl", [{"q": f"Is {n} even?", "a": "yes", "level": n % 2} for n in range(40)])
    overrides = [
        "model=pretrained", f"model.name_or_path={llama}", "task=grpo", "task.data.source=file", f"task.data.path={file}",
        "task.data.num_test_rows=8", "task.max_length=64", "task.prompt_template='{q}'", "task.completion_template='{a}'",
        "task.data.label_column=null", "task.data.labels=null", "task.data.balance=false", "task.objective.max_completion_length=4",
        "task.objective.reward_weights=[1.0,0.5,0.1]", "device=cpu", "device.dtype=float32", "trainer.learning_rate=1e-2",
        "trainer.max_steps=24", "trainer.warmup_steps=0", "action.num_samples=0",
        "task.objective.rewards=[rewards.py:early_letter, rewards.py:by_level, exact_answer]",
    ]  # fmt: skip
    run = cli(*overrides)
    assert run.code == 0, run.err
    before, after = (run.record()["metrics"][when] for when in ("before", "after"))
    assert list(after) == ["loss", "reward", "early_letter", "by_level", "exact_answer"]
    assert after["early_letter"] > before["early_letter"] and after["by_level"] == before["by_level"]
    assert after["reward"] == pytest.approx(
        after["early_letter"] + 0.5 * after["by_level"] + 0.1 * after["exact_answer"]
    )
    called = json.loads((tmp_path / "called.json").read_text())
    assert all(text.startswith("Is ") and text.endswith(" even?") for text in called["prompts"])
    assert after["by_level"] == sum(0.5 if level else 1.0 for level in called["level"]) / 8
    assert [row["level"] for row in called["rows"]] == called["level"] and set(called["answer"]) == {"yes"}
    assert len(called["completion_ids"]) == len(called["completions"]) and not called["training"]
    label = f"task.objective.rewards={tmp_path / 'rewards.py'}"
    digest = atomic_files.hash_file(tmp_path / "rewards.py")
    assert run.record()["files"] == {label: digest} and run.record()["input_digests"][label] == digest
    assert atomic_files.hash_file(run.run_dir / "functions" / "rewards.py") == digest


def test_the_best_checkpoint_is_by_any_metric_and_resumed_alike(cli, tmp_path, llama, on_tiny):
    (tmp_path / "metrics.py").write_text(METRICS)
    overrides = [*on_tiny(llama), *TINY_STEPS, *WATCHED, "task.metrics=[metrics.py:vowels, metrics.py:lengths]"]
    chosen = [*overrides, "trainer.metric_for_best_model=vowels"]
    whole = cli(*chosen)
    assert whole.code == 0 and "a higher value is taken as better" in whole.err, whole.err
    rows = evaluations(whole.run_dir)
    assert list(rows) == [2, 4, 6, 8, 10, 12] and all(row["eval_asked"] == 1.0 for row in rows.values())
    expected = {"eval_loss", "eval_perplexity", "eval_exact_match", "eval_vowels", "eval_longest", "eval_asked", "step"}
    assert all(row.keys() == expected for row in rows.values())
    assert rows[12].keys() - {"step"} == {f"eval_{name}" for name in whole.record()["metrics"]["after"]}
    best = max(rows, key=lambda step: rows[step]["eval_vowels"])
    training = whole.record()["training"]
    assert (training["best_step"], training["best_metric"]) == (best, "vowels")
    assert training["best_value"] == rows[best]["eval_vowels"]
    assert is_same(whole.run_dir / "adapter", whole.run_dir / "checkpoints" / f"checkpoint-{best}")
    assert "best" in whole.out and "validation vowels" in (whole.run_dir / "report.html").read_text()
    # Of the same training, the lowest of what a dict holds is another checkpoint, which a killed and resumed run chooses too.
    more = [
        "trainer.metric_for_best_model=longest",
        "trainer.greater_is_better=false",
        "trainer.early_stopping_patience=3",
    ]
    run = cli(*overrides, *more)
    assert run.code == 0, run.err
    mine = evaluations(run.run_dir)
    assert mine == {step: rows[step] for step in mine}
    other = min(mine, key=lambda step: mine[step]["eval_longest"])
    assert other != best and is_same(run.run_dir / "adapter", whole.run_dir / "checkpoints" / f"checkpoint-{other}")
    (run.run_dir / "record.json").write_text(json.dumps(run.record() | {"status": "running"}))
    max(run.run_dir.glob("checkpoints/*/complete"), key=lambda path: int(path.parent.name[11:])).unlink()
    resumed = cli(*overrides, *more, f"action.resume={run.run_dir}")
    assert resumed.code == 0, resumed.err
    assert evaluations(resumed.run_dir) == mine and resumed.record()["training"]["best_step"] == other
    assert is_same(resumed.run_dir / "adapter", run.run_dir / "adapter")
    # The saved adapter has the metrics that were measured of it.
    evaluated = cli("action=evaluate", f"adapter={whole.run_dir}", "device=cpu", "device.dtype=float32")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.record()["metrics"] == pytest.approx(whole.record()["metrics"]["after"])


def test_other_code_is_not_run_in_the_name_of_a_run(cli, tmp_path, llama, on_tiny):
    file = tmp_path / "metrics.py"
    file.write_text(METRICS)
    overrides = [*on_tiny(llama), *TINY_STEPS, "task.metrics=[metrics.py:vowels]", "task.max_new_tokens=4"]
    run = cli(*overrides)
    assert run.code == 0, run.err
    again = cli("action=replay", f"run={run.run_dir}")
    assert again.code == 0 and again.record()["replay"]["verdict"] == "identical", again.err
    file.write_text(METRICS.replace("aeiou", "xyz"))
    label, folder = f"task.metrics={file}", run.run_dir / "functions"
    check_failed(
        cli,
        tmp_path,
        ["action=replay", f"run={run.run_dir}"],
        [f"action.run={run.run_dir}", label, str(folder), "type task.metrics"],
    )
    check_only = cli("action=replay", f"run={run.run_dir}", "check_only=true")
    assert check_only.code == 1 and label in check_only.out
    (run.run_dir / "record.json").write_text(json.dumps(run.record() | {"status": "running"}))
    check_failed(
        cli,
        tmp_path,
        [*overrides, f"action.resume={run.run_dir}"],
        [f"action.resume={run.run_dir}", label, "restore them"],
    )
    (run.run_dir / "record.json").write_text(json.dumps(run.record() | {"status": "completed"}))
    kept = cli("action=replay", f"run={run.run_dir}", f"task.metrics=[{folder / 'metrics.py'}:vowels]")
    assert kept.code == 0 and kept.record()["replay"]["verdict"] == "identical", kept.err


BROKEN = """
from statistics import mean
def raises(predictions, rows): return [1 / (len(row["prompt"]) - 4) for row in rows]
def nothing(predictions): return None
def undefined(predictions): return float("nan")
def text(predictions): return "good"
def taken(predictions): return {"loss": 1.0}
def other(preds): return 1.0
def endless(completions): return [float("inf")] * len(completions)
def short(completions): return [1.0]
def none(completions): return [1.0, None]
def word(completions): return ["1", 1]
def one_number(completions): return 1.0
def fails(completions, level): return [1 / number for number in level]
def quits(completions): raise SystemExit("stop")
"""
WHERE = "rows.jsonl: row 2"
# What a function of BROKEN does → what its line says.
METRIC_FAULTS = {
    "raises": ["raised ZeroDivisionError: division by zero (broken.py, line 3)", f"for {WHERE}"],
    "nothing": ["returned None", "return a finite number"],
    "undefined": ["returned nan", "return a finite number"],
    "text": ["returned 'good' (str)"],
    "taken": ["returned loss, which another metric is called"],
    "other": ["takes the argument preds", "gets predictions, references, rows"],
}
REWARD_FAULTS = {
    "endless": ["returned inf for rows.jsonl: row 1"],
    "short": ["returned 1 rewards for 2 completions"],
    "none": ["returned None", WHERE],
    "word": ["returned '1' (str)"],
    "one_number": ["returned 1.0", "return a list of numbers"],
    "fails": ["raised ZeroDivisionError", "broken.py, line 14", WHERE],
    "quits": ["raised SystemExit: stop"],
}


@cases("name", [*METRIC_FAULTS, *REWARD_FAULTS])
def test_what_a_function_does_wrong_is_one_line(name, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    text = f"{tmp_path / 'broken.py'}:{name}"
    columns = [json.dumps({"prompt": ask, "level": level}) for ask, level in (("Is it?", 1), ("Is?!", 0))]
    wheres = ["rows.jsonl: row 1", WHERE]
    with pytest.raises(ConfigError) as refused:
        if name in METRIC_FAULTS:
            from peftrun.tasks.generation_metrics import compute_text_metrics

            rows = [
                Row([1], [2], [[2]], 0, where=where, columns=row) for where, row in zip(wheres, columns, strict=True)
            ]
            compute_text_metrics([text], ["a", "b"], ["a", "c"], rows)
        else:
            prompts = [json.dumps("Is it?")] * 2
            own_functions.compute_rewards(
                text, own_functions.Completions(["a", "b"], [[1], [2]], ["", ""], columns, prompts, wheres)
            )
    (line,) = refused.value.lines
    fragments = (METRIC_FAULTS | REWARD_FAULTS)[name]
    assert text in line and all(fragment in line for fragment in fragments), line


REFUSED = {
    "no file": (["task.metrics=[nosuch.py:f1]"], ["nosuch.py:f1: there is no such file"]),
    "no function": (["task.metrics=[metrics.py:vowel]"], ["no function vowel", "did you mean vowels?"]),
    "no Python": (["task.metrics=[torn.py:f1]"], ["torn.py:f1: is not Python: SyntaxError", "line 1"]),
    "neither": (["task.metrics=[blue]"], ["task.metrics=", "or FILE.py:FUNCTION", "bleu"]),
    "twice": (["task.metrics=[metrics.py:vowels,more/metrics.py:vowels]"], ["two of them are called vowels"]),
    "taken": (["task.metrics=[metrics.py:perplexity]"], ["perplexity is a metric of task.type=causal_lm already"]),
    "unknown best": (["trainer.metric_for_best_model=blue", "task.metrics=[bleu]"], ["=blue: the task has no such metric", "exact_match, bleu"]),
    "transformers' name": (["trainer.metric_for_best_model=eval_loss"], ["type trainer.metric_for_best_model=loss"]),
    "turned around": (["trainer.greater_is_better=true"], ["a lower loss is better"]),
    "by a file": (["--config-dir", "ours", "experiment=ours"], ["metrics.py:vowels: is set by a config file", "pkg://PACKAGE"]),
}  # fmt: skip


@cases("name", REFUSED)
def test_what_cannot_be_called_is_refused_before_anything_starts(name, cli, tmp_path, llama, on_tiny, monkeypatch):
    """A reference is looked up in the text of its file; nothing is run, also not by --cfg and action=check."""
    (tmp_path / "metrics.py").write_text(f"{METRICS}\nperplexity = vowels\nraise SystemExit('run')\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "metrics.py").write_text(METRICS)
    (tmp_path / "torn.py").write_text("def f1(:\n")
    write(tmp_path / "ours", "experiment/ours", "task:\n  metrics: ['metrics.py:vowels']\n")
    overrides, fragments = REFUSED[name]
    base = [one for one in on_tiny(llama) if one.partition("=")[0] not in {two.partition("=")[0] for two in overrides}]
    check_refused(cli, tmp_path, [*overrides, *base], fragments)
    if name == "no file":
        assert cli(*base, "task.metrics=[metrics.py:vowels]", "--cfg", "job").code == 0
        swept = cli("-m", *base, "task.metrics=[metrics.py:vowels, bleu]", "lora.r=4,8", "action=plan")
        assert swept.code == 0, swept.err
        loaded = peftrun.load(*base, "task.metrics=[metrics.py:vowels,bleu]")
        assert loaded.task.metrics == [f"{tmp_path / 'metrics.py'}:vowels", "bleu"]
        check_failed(cli, tmp_path, [*base, "task.metrics=[metrics.py:vowels]"], ["cannot be loaded: SystemExit: run"])
    if name == "by a file":  # one that the package carries is found in it, and so is what it lacks
        site = tmp_path / "site"
        package = install(site, "ours_with_code")
        (package / "metrics.py").write_text(METRICS)
        write(package, "experiment/ours_vowels", "task:\n  metrics: ['pkg://ours_with_code/metrics.py:vowels']\n")
        monkeypatch.syspath_prepend(str(site))
        run = cli(*base, "experiment=ours_vowels", *TINY_STEPS, "trainer.max_steps=1", "task.max_new_tokens=2")
        assert run.code == 0 and "vowels" in run.record()["metrics"]["after"], run.err
        assert (run.run_dir / "functions" / "metrics.py").read_text() == METRICS
