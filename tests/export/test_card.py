"""The model card: every figure is the record's, and what was not measured is not in it."""

import json
import re
import shutil

import encoders
import pytest
import torch
import yaml
from cases import cases
from conftest import TINY_STEPS, cli_here
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peftrun.adapters import probes


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("cards")


def card_of(outcome):
    assert outcome.code == 0, outcome.err
    return ModelCard.load(outcome.run_dir / "export" / "README.md")


@pytest.fixture(scope="module")
def card(where, trained):
    return card_of(
        cli_here(where, "action=export", f"adapter={trained}", "repo_id=me/even", "base_model=me/tiny", "license=mit")
    )


def table(card, title):
    """Cells of the table in a section, row by row, without its head."""
    lines = re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", card.text, re.S)[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows[1:] if set(row[0]) != {"-"}]


def test_the_metadata_is_what_the_hub_reads(card):
    assert card.data.base_model == "me/tiny" and card.data.license == "mit" and card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation" and {"lora", "peftrun"} <= set(card.data.tags)
    assert card.data.model_name == "even" and card.data.to_dict()["base_model_relation"] == "adapter"
    assert "datasets" not in card.data.to_dict(), "the rows are a file of this machine"


def test_the_measured_results_are_the_record_s(card, trained):
    record = json.loads((trained / "record.json").read_text())
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == record["metrics"]["after"]
    assert all(f"{record['data']['held_out_rows']} held-out rows" in one.dataset_name for one in card.data.eval_results)
    rows = {name: (float(before), float(after)) for name, before, after in table(card, "Measured")}
    assert rows.keys() == record["metrics"]["after"].keys() == record["metrics"]["before"].keys()
    for name, (before, after) in rows.items():
        assert before == pytest.approx(record["metrics"]["before"][name], rel=1e-3)
        assert after == pytest.approx(record["metrics"]["after"][name], rel=1e-3)
    assert (
        f"On {record['data']['held_out_rows']} evaluation rows of pairs.jsonl, which training did not see:" in card.text
    )


def test_measured_on_rows_that_were_learned_is_said(where, trained):
    run = shutil.copytree(trained, where / "learned-too")
    record = json.loads((run / "record.json").read_text())
    record["data"]["held_out_rows_learned"] = 3
    (run / "record.json").write_text(json.dumps(record))
    found = card_of(cli_here(where, "action=export", f"adapter={run}", "base_model=me/tiny"))
    assert "of which 3 are training rows too, so the metrics are too good" in found.text


def test_the_training_is_the_record_s(card, trained):
    record = json.loads((trained / "record.json").read_text())
    config = yaml.safe_load((trained / "config.yaml").read_text())
    rows = dict(table(card, "Training"))
    assert int(rows["steps"]) == record["training"]["steps"] == 4
    assert int(rows["training rows"]) == record["data"]["train_rows"]
    assert float(rows["mean training loss"]) == pytest.approx(record["training"]["train_loss"], rel=1e-3)
    assert float(rows["seconds of training"]) == pytest.approx(record["training"]["seconds"], rel=1e-3)
    assert float(rows["learning_rate"]) == config["trainer"]["learning_rate"] and int(rows["seed"]) == record["seed"]
    assert rows["trained parameters"] == f"{record['trainable_parameters']} of {record['parameters']}"
    assert f"r {config['lora']['r']}, lora_alpha {config['lora']['lora_alpha']}" in rows["method"]
    assert all(f"{name} {record['versions'][name]}" in rows["versions"] for name in ("peftrun", "peft", "torch"))
    marks = [text.strip("`") for _, text in table(card, r"Fingerprints \(sha256\)")]
    assert set(marks) == {*record["base"]["fingerprint"].values(), record["data"]["digest"]}


def test_how_to_use_and_make_it_again_is_told(card):
    assert 'PeftModel.from_pretrained(base, "me/even")' in card.text
    assert 'from_pretrained("me/tiny"' in card.text and "action=generate" in card.text
    assert "trainer.max_steps=4" in card.text and "task.data.path=pairs.jsonl" in card.text


def said_to_load(card, **places):
    """What the card's Python leaves, with the places of this machine for the names on the Hub."""
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    for name, place in places.items():
        code = code.replace(f"me/{name}", str(place))
    found: dict = {}
    exec(code, found)
    return found["model"].eval(), found["tokenizer"]


def test_what_it_says_of_loading_works(card, where, trained, llama):
    folder = next(iter(sorted((where / "outputs" / "export").glob("*/export"))))
    model, tokenizer = said_to_load(card, tiny=llama, even=folder)
    wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), trained / "adapter").eval()
    assert torch.equal(probes.compute_probe_logits(model, tokenizer), probes.compute_probe_logits(wanted, tokenizer))


@pytest.mark.slow
def test_a_classifier_s_card_says_its_labels(where, tmp_path):
    bert, rows = encoders.build_bert(tmp_path / "bert"), tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"text": f"muy {word} {n}", "label": word}) + "\n"
            for n in range(16)
            for word in ("malo", "bueno")
        )
    )
    asked = [
        "experiment=spanish_sentiment", "model=pretrained", f"model.name_or_path={bert}", "task.data.source=file", f"task.data.path={rows}",
        "task.data.num_test_rows=8", "task.data.label_column=label", "task.label_names=[malo,bueno]", "task.data.labels=null", "device=cpu", "device.dtype=float32",
    ]  # fmt: skip
    run = cli_here(where, *asked, *TINY_STEPS).run_dir
    exported = cli_here(where, "action=export", f"adapter={run}", "base_model=me/tiny", "repo_id=me/even")
    found = card_of(exported)
    assert found.data.pipeline_tag == "text-classification" and "accuracy" in dict.fromkeys(
        row[0] for row in table(found, "Measured")
    )
    assert "num_labels=2, id2label={0: 'malo', 1: 'bueno'}" in found.text
    model, tokenizer = said_to_load(found, tiny=bert, even=exported.run_dir / "export")
    assert (
        torch.isfinite(model(**tokenizer("muy bueno", return_tensors="pt")).logits).all()
        and model.config.num_labels == 2
    )


@pytest.mark.slow
def test_a_base_that_was_not_measured_is_not_claimed(where, llama, on_tiny):
    run = cli_here(where, *on_tiny(llama), *TINY_STEPS, "action.evaluate_before=false").run_dir
    found = card_of(cli_here(where, "action=export", f"adapter={run}", "base_model=me/tiny"))
    assert all(len(row) == 2 for row in table(found, "Measured"))
    assert "not the base model alone, either" in found.text and "base model |" not in found.text


def test_of_an_adapter_without_a_run_nothing_is_claimed(where, llama):
    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    net.save_pretrained(where / "plain")
    found = card_of(cli_here(where, "action=export", f"adapter={where / 'plain'}", "base_model=me/tiny"))
    assert "Nothing was measured" in found.text and "There is no record of how it was made" in found.text
    assert found.data.eval_results is None and "## Training" not in found.text and "license" not in found.data.to_dict()
    assert not re.search(r"\d+ (rows|steps)", found.text)


@cases("inner", ["checkpoints/checkpoint-2", "export"])
def test_what_a_record_is_not_about_claims_nothing_of_it(where, trained, inner):
    """A checkpoint was not measured, and the run of an export trained nothing."""
    if inner == "export":
        trained = cli_here(where, "action=export", f"adapter={trained}", "base_model=me/tiny").run_dir
    found = card_of(cli_here(where, "action=export", f"adapter={trained / inner}", "base_model=me/tiny"))
    assert "Nothing was measured" in found.text and "There is no record of how it was made" in found.text
    assert found.data.eval_results is None and "## Training" not in found.text


def test_of_a_combination_its_parts_are_told_and_no_measurement(where, trained, llama, on_tiny):
    both = f"adapter={{a: {trained}, b: {trained}}}"
    run = cli_here(where, *on_tiny(llama), "action=combine", both, "action.combination_type=cat").run_dir
    found = card_of(cli_here(where, "action=export", f"adapter={run}", "base_model=me/tiny"))
    assert "Nothing was measured" in found.text and '"combination": "cat"' in found.text
    assert found.data.eval_results is None and "## Training" not in found.text
