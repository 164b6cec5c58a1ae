"""report.html of a training run: needs nothing but itself, says what the record says, trusts no text of its user."""

import json
import shutil
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cases import cases
from html_pages import Page, needs_nothing

from peftrun.errors import ArtifactError
from peftrun.formatting import format_number, format_signed
from peftrun.io import atomic_files
from peftrun.results.report import __main__ as by_hand
from peftrun.results.report import learning_curves, page, run_facts

EVIL = '<script>alert("x")</script> & <img src=x> \' "'


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a real run's folder, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def page_of(folder):
    found = Page(page.write_report(folder).read_text())
    needs_nothing(found)
    ElementTree.fromstring((folder / "curves.svg").read_text())
    return found


def change(folder, **more):
    record = atomic_files.read_json(folder / "record.json")
    atomic_files.write_json(folder / "record.json", record | more)


def rows(folder, *found):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))


def test_a_training_leaves_its_report_and_names_it(trained):
    found = Page((trained / "report.html").read_text())
    needs_nothing(found)
    ElementTree.fromstring((trained / "curves.svg").read_text())
    assert "http" not in (trained / "report.html").read_text()
    for title in (
        "Learning",
        "Sample answers",
        "Cost",
        "Configuration",
        "Integrity",
        "Environment",
    ):
        assert title in found.text


def test_every_figure_is_the_records(trained):
    found, record = Page((trained / "report.html").read_text()).text, atomic_files.read_json(trained / "record.json")
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    for name in after:
        assert format_number(before[name]) in found and format_number(after[name]) in found
        assert format_signed(after[name] - before[name]) in found
    for row in atomic_files.read_json_lines(trained / "metrics.jsonl"):
        assert format_number(row["loss"]) in found and format_number(row["grad_norm"]) in found
    for digest in [*record["artifacts"].values(), *filter(None, record["base"]["fingerprint"].values())]:
        assert digest in found
    assert f"{record['trainable_parameters']:,} of {record['parameters']:,}" in found
    assert record["size"]["adapter_bytes"] == atomic_files.measure_size(trained / "adapter")


def test_facts_are_those_of_the_folder(trained):
    found = run_facts.read_run_facts(trained)
    assert (found.status, found.task, found.choices["lora"]) == ("completed", "instruction", "lora")
    assert found.after == atomic_files.read_json(trained / "record.json")["metrics"]["after"]
    assert [row["step"] for row in found.rows] == [1, 2, 3, 4] and found.made["base"]["name"] == found.base
    assert "trainer.max_steps=4" in found.typed and found.values["trainer"]["max_steps"] == 4


def test_samples_are_what_the_record_holds(trained):
    found = atomic_files.read_json(trained / "record.json")["samples"]
    text = Page((trained / "report.html").read_text()).text
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        assert row["expected"] in ("yes", "no") and "even?" in row["prompt"] and row["expected"] in text
        assert {"before", "after", "where"} <= row.keys() and row["prompt"] in text


def test_what_differs_from_the_defaults_is_told_with_the_default(trained):
    text = " ".join(Page((trained / "report.html").read_text()).text.split())
    assert "trainer.max_steps 4 60" in text and "trainer.learning_rate 0.01" in text
    assert "peftrun action=replay run=" in text and "trainer.warmup_steps=0" in text


def test_everything_that_is_not_ours_is_text(run):
    record = atomic_files.read_json(run / "record.json")
    sample = {"where": EVIL, "prompt": EVIL, "expected": EVIL, "before": EVIL, "after": EVIL}
    matrix = {"labels": [EVIL, "b"], "counts": [[3, 1], [0, 2]]}
    change(
        run, status=EVIL, error=EVIL, stopped=EVIL, started=EVIL, device=EVIL, platform=EVIL, command=[EVIL],
        base={"name": EVIL, "fingerprint": {EVIL: EVIL}}, artifacts={EVIL: EVIL}, given={EVIL: EVIL},
        samples={"max_new_tokens": EVIL, "rows": [sample]}, confusion={"before": matrix, "after": matrix},
        entities={"after": {EVIL: {"true": 3, "found": 2, "right": 1}}}, computing={"threads": EVIL, "not_deterministic": [EVIL]},
        metrics={"before": {EVIL: 1.0}, "after": {EVIL: 2.0}}, versions={EVIL: EVIL}, environment={"settings": {EVIL: EVIL}},
        data=record["data"] | {"held_out_rows": EVIL}, unread=[EVIL],
    )  # fmt: skip
    rows(run, {"step": 1, "seconds": 1.0, "loss": 1.0, EVIL: 2.0}, {"step": 2, "seconds": 2.0, "loss": 0.5, EVIL: 1.0})
    learned = {
        "source": EVIL,
        "split": EVIL,
        "text": EVIL,
        "spans": [[1, 9]],
        "input_ids": [EVIL, 2],
        "labels": [1, -100],
    }
    shown = learned | {"tokens": [EVIL, EVIL], "facts": {EVIL: EVIL}, "rejected": learned}
    (run / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in (shown, {"text": EVIL}, [EVIL])))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  prompt: '{prompt}'", f"  prompt: {json.dumps(EVIL)}", 1))
    (run / ".hydra/overrides.yaml").write_text(json.dumps([f"task.prompt_template={EVIL}"]))
    found = page_of(run)
    assert found.text.count(EVIL) > 20


@cases("figure", [float("nan"), float("inf"), float("-inf"), None, "much", True])
def test_figures_that_are_no_numbers(run, figure):
    change(run, metrics={"before": {"loss": 2.0, "f1": figure}, "after": {"loss": figure, "f1": 0.5}})
    rows(
        run,
        {"step": 1, "seconds": 1.0, "loss": 2.0, "grad_norm": figure, "num_tokens": figure},
        {"step": 2, "seconds": figure, "loss": figure, "learning_rate": 1e-3},
        {"step": 3, "seconds": 3.0, "loss": 1.0, "num_tokens": 30},
    )
    found = page_of(run)
    words = (found.text + (run / "curves.svg").read_text()).lower().split()
    assert not {"nan", "inf", "-inf"} & set(words)


def test_one_logged_step_and_a_flat_line(run):
    rows(run, {"step": 1, "seconds": 1.0, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0})
    assert "Learning" in page_of(run).text
    rows(run, *({"step": step, "seconds": float(step), "loss": 2.0} for step in (1, 2, 3)))
    assert "loss" in page_of(run).text


@cases("text", ["", '{"step": 1, "lo{"step": 2}\n', '[1, 2]\n"x"\n', '{"loss": 3}\n'])
def test_no_rows_or_damaged_ones(run, text):
    (run / "metrics.jsonl").write_text(text)
    page_of(run)
    (run / "metrics.jsonl").unlink()
    assert "No step was logged" in page_of(run).text


FILES = "record.json", "config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "adapter/peftrun.json"


@cases("name, text", product(FILES, ["{", "[1, 2]", "a: &b\n", None]))
def test_a_file_that_is_missing_or_damaged_is_a_gap(trained, tmp_path, name, text):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / name).unlink() if text is None else (run / name).write_text(text)
    page_of(run)


def test_a_run_that_goes_on_and_one_that_failed(run):
    record = atomic_files.read_json(run / "record.json")
    known = ("status", "action", "command", "started", "versions", "environment")
    atomic_files.write_json(run / "record.json", {key: record[key] for key in known} | {"status": "running"})
    found = page_of(run).text
    assert "running" in found and "No metrics on evaluation rows were recorded" in found and "still going" in found
    change(run, status="failed", error="the loss is nan at step 3")
    data, measured = record["data"], record["metrics"]
    for learned, said in (
        ({}, "none of which was trained on"),
        ({"held_out_rows_learned": 3}, "3 of which are training rows too"),
    ):
        change(run, data=data | learned, metrics=measured)
        assert said in page_of(run).text
    assert "Error" in page_of(run).text and "the loss is nan at step 3" in page_of(run).text


@pytest.mark.slow
def test_a_record_of_any_shape_is_told_as_far_as_it_goes(run):
    for key in atomic_files.read_json(run / "record.json"):
        for value in (None, [], "x", 3, {"x": [1]}):
            copy = atomic_files.read_json(run / "record.json")
            atomic_files.write_json(run / "record.json", copy | {key: value})
            page_of(run)
            atomic_files.write_json(run / "record.json", copy)


def test_a_long_run_is_a_page_of_a_reasonable_size(run):
    rows(run, *({"step": n, "seconds": n / 9, "loss": 3 / n + n % 7 / 50, "grad_norm": 1.0 + n % 5, "learning_rate": 1e-4, "num_tokens": 99 * n, "mean_token_accuracy": 0.5, "resident_bytes": 10**9} for n in range(1, 20_001)))  # fmt: skip
    found = page_of(run)
    assert (run / "report.html").stat().st_size < 400_000 and (run / "curves.svg").stat().st_size < 250_000
    assert "40 of 20000 steps" in found.text


def test_throughput_says_nothing_across_a_resumption(run):
    rows(run, *({"step": n, "seconds": s, "loss": 1.0, "num_tokens": 100.0 * n} for n, s in ((1, 1.0), (2, 2.0), (3, 0.5), (4, 1.0))))  # fmt: skip
    speed = next(one for one in learning_curves.build_plots(run_facts.read_run_facts(run)) if one.name == "speed")
    assert speed.title == "tokens/s" and speed.series[0].points == [(1.0, 100.0), (2.0, 100.0), (4.0, 200.0)]


def test_older_runs_get_theirs_by_hand(run, tmp_path, capsys):
    (run / "report.html").unlink()
    assert by_hand.main([str(run), str(tmp_path / "nowhere")]) == 1
    out, err = capsys.readouterr()
    assert (run / "report.html").is_file() and str(run / "report.html") in out and "is no run folder" in err
    with pytest.raises(ArtifactError, match="is no run folder"):
        page.write_report(tmp_path / "nowhere")


def test_by_hand_only_whole_trainings_get_one(run, capsys):
    assert by_hand.main(["--help"]) == 0 and capsys.readouterr().out.startswith(
        "usage: python -m peftrun.results.report"
    )
    assert by_hand.main([]) == 1 and capsys.readouterr().err.startswith("usage: ")
    (run / "report.html").unlink()
    change(run, action="evaluate")
    assert by_hand.main([str(run)]) == 1 and "is a run of action=evaluate" in capsys.readouterr().err
    (run / "record.json").write_text('{"status": ')
    assert by_hand.main([str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "record.json: is unreadable" in line and not (run / "report.html").exists()


def test_what_proves_the_adapter_is_typed_on_the_same_base(run):
    command = next(line for line in page_of(run).text.splitlines() if "peftrun action=reload adapter=" in line)
    assert " model=pretrained " in command and " task=" in command and "model.name_or_path=" in command


def test_counts_fit_their_words(run):
    change(run, computing={"threads": 1, "not_deterministic": []})
    assert "Computed on 1 thread;" in page_of(run).text


def test_where_it_cannot_be_written_a_warning_is_all(run, capsys):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert page.try_write_report(run) is None
    assert "warning: no report of" in capsys.readouterr().err


def test_a_cell_knows_its_command_and_leads_to_its_sweep(run):
    shutil.rmtree(run / ".hydra")
    assert run_facts.read_run_facts(run).task == "causal_lm on pairs.jsonl"
    cells = [
        {"folder": "other", "command": "peftrun"},
        {"folder": "run", "command": "peftrun task=alpaca 'task.prompt_template=a b'"},
    ]
    atomic_files.write_json(run.parent / "sweep.json", {"cells": cells})
    found = run_facts.read_run_facts(run)
    assert (found.task, found.typed) == ("alpaca", ["task=alpaca", "task.prompt_template=a b"])
    text = page.write_report(run).read_text()
    assert 'href="../report.html"' in text and "peftrun task=alpaca &#x27;task.prompt_template=a b&#x27;" in text
