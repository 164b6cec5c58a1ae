"""What trainings leave for their reports: answers that move nothing, matrices that add up, pages whatever became of the run."""

import encoders
import pytest
from cases import cases
from conftest import SAMPLED_STEPS, jsonl
from faults import check_told
from html_pages import Page, needs_nothing

from peftrun.artifacts.run_layout import ADAPTER, ADAPTER_WEIGHTS, RECORD
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.io import atomic_files
from peftrun.planning.joint_memory import Limits
from peftrun.results.report import page
from peftrun.results.report.generations import compute_scores
from peftrun.runs import execute

STEPS = [*SAMPLED_STEPS, "trainer.save_strategy=no"]


def spec(*overrides):
    return build_spec(compose.compose_run(overrides).cfg)


def run(folder, *overrides):
    result = execute.execute_run(spec(*overrides), folder)
    return result, atomic_files.read_json(folder / RECORD)


def text_of(folder):
    found = Page((folder / "report.html").read_text())
    needs_nothing(found)
    return found.text


def weights(folder):
    return atomic_files.hash_file(folder / ADAPTER / ADAPTER_WEIGHTS)


@cases("more", [[], ["lora.lora_dropout=0.3"]])
def test_answering_samples_moves_nothing(tmp_path, llama, on_tiny, more):
    given = [*on_tiny(llama), *STEPS, *more]
    found = {count: run(tmp_path / f"of{count}", *given, f"action.num_samples={count}")[1] for count in (0, 3)}
    assert weights(tmp_path / "of0") == weights(tmp_path / "of3")
    assert found[0]["metrics"] == found[3]["metrics"] and "samples" not in found[0]
    losses = [
        [row["loss"] for row in atomic_files.read_json_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("of0", "of3")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert len(found[3]["samples"]["rows"]) == 3 and "Sample answers" not in text_of(tmp_path / "of0")


def test_the_closing_table_names_the_report(tmp_path, llama, on_tiny, cli):
    outcome = cli(*on_tiny(llama), *STEPS, "action.num_samples=1", "action.evaluate_before=false")
    named = next(line.split() for line in outcome.out.splitlines() if line.startswith("report "))
    assert named == ["report", str(outcome.run_dir.relative_to(tmp_path) / "report.html")]
    (row,) = outcome.record()["samples"]["rows"]
    assert "before" not in row and row["after"] is not None and "After training" in text_of(outcome.run_dir)


@pytest.mark.slow
def test_cells_trained_together_leave_what_lone_runs_leave(tmp_path, monkeypatch, llama, on_tiny):
    monkeypatch.chdir(tmp_path)
    cells = [
        [*on_tiny(llama), *STEPS, "trainer.max_steps=20", f"seed={seed}", f"action.num_samples={2 + seed}"]
        for seed in (0, 1)
    ]
    folders = [tmp_path / f"joint{n}" for n in range(2)]
    execute.execute_jointly([spec(*cell) for cell in cells], folders, Limits(cells=2))
    for n, (folder, cell) in enumerate(zip(folders, cells, strict=True)):
        _, lone = run(tmp_path / f"lone{n}", *cell)
        joint = atomic_files.read_json(folder / RECORD)
        assert joint["samples"] == lone["samples"] and len(joint["samples"]["rows"]) == 2 + n
        assert {"before", "after"} <= joint["samples"]["rows"][0].keys()
        assert "trained together with 1 other cells" in text_of(folder) and (folder / "curves.svg").is_file()


@pytest.mark.slow
def test_a_confusion_matrix_adds_up_to_the_figures(tmp_path):
    _, record = run(tmp_path / "run", *encoders.on_texts(encoders.build_bert(tmp_path / "bert"), tmp_path), *STEPS)
    for when in ("before", "after"):
        labels, counts = record["confusion"][when]["labels"], record["confusion"][when]["counts"]
        assert labels == encoders.LABELS and sum(map(sum, counts)) == record["data"]["held_out_rows"] == 8
        assert sum(counts[place][place] for place in range(2)) / 8 == record["metrics"][when]["accuracy"]
        assert f"{when.capitalize()} training: {counts[0][0] + counts[1][1]} of 8 right" in text_of(tmp_path / "run")
    assert "samples" not in record


@pytest.mark.slow
def test_entities_of_each_type_add_up_to_the_figures(tmp_path):
    _, record = run(tmp_path / "run", *encoders.on_words(encoders.build_bert(tmp_path / "bert"), tmp_path), *STEPS)
    for when in ("before", "after"):
        kinds = record["entities"][when]
        assert kinds.keys() == {"PERSON", "LOCATION"}
        every = {name: sum(one[name] for one in kinds.values()) for name in ("true", "found", "right")}
        assert compute_scores(every) == pytest.approx(
            [record["metrics"][when][name] for name in ("precision", "recall", "f1")]
        )
    assert "PERSON" in text_of(tmp_path / "run")


@pytest.mark.slow
def test_an_encoder_and_a_decoder_answer_too(tmp_path):
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"en": f"muy {n}", "es": "bueno " * (n % 3 + 1)} for n in range(30)])
    _, record = run(
        tmp_path / "run", "model=pretrained", f"model.name_or_path={encoders.build_t5(tmp_path / 't5')}", "task=translation",
        "task.data.source=file", f"task.data.path={pairs}", "task.data.num_test_rows=6", 'task.prompt_template="{en}"', 'task.completion_template="{es}"',
        "task.metrics=null", "device=cpu", "device.dtype=float32", *STEPS,
    )  # fmt: skip
    assert [row["prompt"].startswith("muy") for row in record["samples"]["rows"]] == [True] * 3
    assert all(row["expected"].startswith("bueno") and "after" in row for row in record["samples"]["rows"])


@pytest.mark.slow
def test_a_preference_expects_the_chosen_answer(tmp_path, llama):
    file = jsonl(tmp_path / "pairs.jsonl", [{"q": f"Is {n} even?", "good": "yes", "bad": "no"} for n in range(40)])
    given = [
        "model=pretrained", f"model.name_or_path={llama}", "task.data.source=file", f"task.data.path={file}", "task.data.num_test_rows=8",
        "task.max_length=64", "task.messages_column=null", "task.prompt_template='{q}'", "task.chosen_column=good", "task.rejected_column=bad", "device=cpu",
        "device.dtype=float32", *STEPS,
    ]  # fmt: skip
    _, record = run(tmp_path / "dpo", "task=dpo", *given)
    assert [row["expected"] for row in record["samples"]["rows"]] == ["yes"] * 3
    assert "rewards/accuracies" in text_of(tmp_path / "dpo")
    assert "samples" not in run(tmp_path / "reward", "task=reward", *given)[1]  # it writes nothing


@pytest.mark.slow
def test_a_text_learned_whole_is_asked_for_what_follows_its_beginning(tmp_path, llama):
    file = jsonl(
        tmp_path / "texts.jsonl", [{"text": f"{n} quick brown foxes jump over {n} lazy dogs"} for n in range(40)]
    )
    _, record = run(
        tmp_path / "run", "model=pretrained", f"model.name_or_path={llama}", "task=plain_text", "task.data.source=file",
        f"task.data.path={file}", "task.data.num_test_rows=8", "task.completion_template='{text}'", "task.max_length=64", "device=cpu",
        "device.dtype=float32", *STEPS,
    )  # fmt: skip
    for row in record["samples"]["rows"]:
        assert row["prompt"] and row["expected"] and "dogs" in row["expected"]


def test_a_run_that_fails_after_it_has_logged_leaves_its_report(tmp_path, llama, on_tiny):
    with pytest.raises(Exception, match="the loss is"):
        run(tmp_path / "run", *on_tiny(llama), *STEPS, "trainer.max_steps=40", "trainer.learning_rate=1e30")
    record = atomic_files.read_json(tmp_path / "run" / RECORD)
    assert record["status"] == "failed" and atomic_files.read_json_lines(tmp_path / "run/metrics.jsonl")
    assert record["error"] in text_of(tmp_path / "run")


@pytest.mark.slow
def test_a_run_shorter_than_its_logging_logs_its_last_step_and_leaves_its_report(tmp_path, llama, on_tiny):
    every = [*on_tiny(llama), *STEPS, "action.num_samples=0"]
    for logging, steps in ((100, [1, 4]), (3, [1, 3, 4]), (2, [1, 2, 4])):
        folder = tmp_path / f"each{logging}"
        run(folder, *every, f"trainer.logging_steps={logging}")
        assert [row["step"] for row in atomic_files.read_json_lines(folder / "metrics.jsonl")] == steps
        assert "Learning" in text_of(folder) and (folder / "curves.svg").is_file()


@pytest.mark.slow
def test_cells_shorter_than_their_logging_log_the_same_last_step(tmp_path, monkeypatch, llama, on_tiny):
    monkeypatch.chdir(tmp_path)
    given = [*on_tiny(llama), *STEPS, "trainer.logging_steps=100", "action.num_samples=0"]
    execute.execute_jointly(
        [spec(*given, f"seed={seed}") for seed in (0, 1)], [tmp_path / "cell0", tmp_path / "cell1"], Limits(cells=2)
    )
    run(tmp_path / "lone", *given, "seed=1")
    joint, lone = (atomic_files.read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("cell1", "lone"))
    assert [row["step"] for row in joint] == [row["step"] for row in lone] == [1, 4]
    assert [row["loss"] for row in joint] == pytest.approx([row["loss"] for row in lone], rel=1e-5)
    assert (tmp_path / "cell0/report.html").is_file()


def test_other_actions_leave_none(tmp_path, trained, on_tiny, llama):
    run(tmp_path / "run", "action=evaluate", *on_tiny(llama), f"adapter={trained}")
    assert not (tmp_path / "run/report.html").exists()


def test_a_report_that_cannot_be_made_costs_the_run_nothing(tmp_path, llama, on_tiny, capsys):
    (tmp_path / "run/report.html").mkdir(parents=True)
    result, record = run(tmp_path / "run", *on_tiny(llama), *STEPS, "action.num_samples=0")
    assert record["status"] == "completed" and "report" not in dict(result.summary)
    assert "warning: no report of" in capsys.readouterr().err


def test_memory_is_logged_and_recorded(trained):
    record = atomic_files.read_json(trained / RECORD)
    held = [row["resident_bytes"] for row in atomic_files.read_json_lines(trained / "metrics.jsonl")]
    # the system counts pages by thread, so that a reading may exceed the peak by a few
    assert len(held) == 4 and 0 < max(held) <= 1.01 * record["memory"]["peak_resident_bytes"]


def test_negative_samples_are_refused(cli):
    check_told(
        cli("action.num_samples=-1"),
        [("action.num_samples=-1: must be greater than or equal to 0", "type action.num_samples=3")],
    )


@pytest.mark.slow
def test_full_training_has_a_report(tmp_path, llama, on_tiny):
    run(tmp_path / "run", *on_tiny(llama), *STEPS, "lora=none", "trainer.learning_rate=1e-3", "action.num_samples=1")
    assert "every weight is trained" in text_of(tmp_path / "run")
    assert page.write_report(tmp_path / "run").is_file()
