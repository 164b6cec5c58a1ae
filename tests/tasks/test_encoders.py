"""Classifiers on one encoder: each learns, reloads as it was, and answers in company as alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import cli_here, subprocess_cli
from faults import check_failed, check_refused
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import peftrun
from peftrun.tasks.classification import macro_f1
from peftrun.tasks.rows.token_cls import _parse_entity_list
from peftrun.tasks.token_cls import extract_entities

sys.path.insert(0, str(Path(__file__).parent.parent))
from encoders import LABELS, STEPS, TAGS, build_bert, on_texts, on_words

from peftrun.checks.metric_names import METRICS
from peftrun.composition.spec import build_spec

TEXTS = ["el libro muy bueno", "Ana vive en Quito", "la película malo", "Luis"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return build_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("encoders")


def learned(where, overrides):
    outcome = cli_here(where, *overrides, *STEPS)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def spanish(where, bert):
    return learned(where, on_texts(bert, where))


@pytest.fixture(scope="module")
def ner(where, bert):
    return learned(where, on_words(bert, where))


def alone(run, overrides):
    return peftrun.load_adapter(str(run), *overrides)


def together(spanish, ner, bert, where):
    from peftrun.adapters import load
    from peftrun.artifacts import adapter_folder, classifier_head
    from peftrun.composition import compose
    from peftrun.models import base as base_models
    from peftrun.models import device

    both = f"adapter={{spanish: {spanish.run_dir}, ner: {ner.run_dir}}}"
    spec = build_spec(compose.compose_run((*on_texts(bert, where), "action=reload", both)).cfg)
    adapters = adapter_folder.resolve_adapters(spec.adapter)
    head = classifier_head.select_head(spec.task, adapters, spec.active_adapter)
    base = base_models.load_base(spec.model, device.resolve_device(spec.device), head=head)
    return load.load(base, adapters, spec.active_adapter, False)[0], base


@torch.inference_mode()
def logits(net, tokenizer, text):
    return net(**tokenizer([text], return_tensors="pt", return_token_type_ids=False)).logits[0]


def test_both_kinds_learn(spanish, ner):
    for run, kind in ((spanish, "seq_cls"), (ner, "token_cls")):
        assert run.record()["metrics"]["after"].keys() == set(METRICS[kind])
    before, after = (spanish.record()["metrics"][when] for when in ("before", "after"))
    assert after["loss"] < before["loss"] and after["accuracy"] == after["macro_f1"] == 1.0
    before, after = (ner.record()["metrics"][when] for when in ("before", "after"))
    assert after["loss"] < before["loss"] and after["f1"] > max(0.9, before["f1"]) and after["token_accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("which", ["spanish", "ner"])
def test_reloaded_in_a_fresh_process_it_is_what_was_saved(which, request, where, bert):
    run = request.getfixturevalue(which)
    overrides = on_texts(bert, where) if which == "spanish" else on_words(bert, where)
    again = subprocess_cli(where, "action=reload", f"adapter={run.run_dir}", *overrides)
    assert again.code == 0, again.err
    record = again.record()
    assert record["adapters"][0]["saved_difference"] == 0.0
    assert record["metrics"] == pytest.approx(run.record()["metrics"]["after"])


@pytest.mark.parametrize("which", ["spanish", "ner"])
def test_plain_peft_loads_it_and_answers_the_same(which, request, where, bert):
    run = request.getfixturevalue(which)
    overrides, made, labels = {
        "spanish": (on_texts(bert, where), AutoModelForSequenceClassification, LABELS),
        "ner": (on_words(bert, where), AutoModelForTokenClassification, TAGS),
    }[which]
    ours, tokenizer = alone(run.run_dir, overrides)
    torch.manual_seed(77)  # another random head than ours
    plain = PeftModel.from_pretrained(made.from_pretrained(bert, num_labels=len(labels)), str(run.run_dir / "adapter"))
    for text in TEXTS:
        assert torch.equal(logits(ours, tokenizer, text), logits(plain.eval(), tokenizer, text))


def test_all_linear_leaves_the_head_alone_and_the_head_is_saved_whole(spanish, ner):
    for run, labels in ((spanish, LABELS), (ner, TAGS)):
        saved = load_file(run.run_dir / "adapter" / "adapter_model.safetensors")
        head = {key: value for key, value in saved.items() if "classifier" in key}
        assert sorted(key.rsplit(".", 1)[1] for key in head) == ["bias", "weight"]
        assert all(value.shape[0] == len(labels) for value in head.values())
        assert any("query.lora_A" in key for key in saved)


def test_in_company_each_answers_as_alone_after_every_switch(spanish, ner, where, bert):
    net, base = together(spanish, ner, bert, where)
    own = {
        "spanish": alone(spanish.run_dir, on_texts(bert, where))[0],
        "ner": alone(ner.run_dir, on_words(bert, where))[0],
    }
    for name in ("spanish", "ner", "spanish", "ner"):
        net.set_adapter(name)
        for text in TEXTS:
            assert torch.equal(logits(net, base.tokenizer, text), logits(own[name], base.tokenizer, text))


def test_the_encoder_is_in_memory_once(spanish, ner, where, bert):
    net, _ = together(spanish, ner, bert, where)
    one, other = (net.get_member(name).get_base_model().bert for name in ("spanish", "ner"))
    assert one.encoder is other.encoder and one.embeddings is other.embeddings
    plain = [value for key, value in net.named_parameters() if "lora_" not in key and "classifier" not in key]
    single = AutoModelForSequenceClassification.from_pretrained(bert).bert
    assert sum(value.numel() for value in plain) == sum(value.numel() for value in single.parameters())


def test_rows_of_both_tasks_mix_in_one_pass(spanish, ner, where, bert):
    net, base = together(spanish, ner, bert, where)
    names = ["spanish", "ner", "ner", "spanish"]
    batch = base.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    passes = []
    layer = net.get_member("spanish").get_base_model().bert.encoder.layer[0]
    layer.register_forward_hook(lambda *_: passes.append(1))
    found = net.mixed(names, **batch)
    assert len(passes) == 1
    for text, name, mask, values in zip(TEXTS, names, batch["attention_mask"].bool(), found, strict=True):
        net.set_adapter(name)
        own = values[mask] if name == "ner" else values
        torch.testing.assert_close(own, logits(net, base.tokenizer, text), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="nobody"):
        net.mixed(["nobody"] * 4, **batch)


@pytest.mark.slow
def test_saved_together_each_reloads_alone_as_it_was(spanish, ner, where, bert):
    both = f"adapter={{spanish: {spanish.run_dir}, ner: {ner.run_dir}}}"
    saved = subprocess_cli(where, "action=save", both, *on_texts(bert, where))
    assert saved.code == 0, saved.err
    for name, run, overrides in (("spanish", spanish, on_texts(bert, where)), ("ner", ner, on_words(bert, where))):
        again = cli_here(where, "action=reload", f"adapter={saved.run_dir}/adapter/{name}", *overrides)
        assert again.code == 0, again.err
        assert again.record()["adapters"][0]["saved_difference"] == 0.0
        assert again.record()["metrics"] == pytest.approx(run.record()["metrics"]["after"])
        file = saved.run_dir / "adapter" / name / "adapter_model.safetensors"
        before = load_file(run.run_dir / "adapter" / "adapter_model.safetensors")
        after = load_file(file)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_a_language_model_takes_a_text_classifiers_head(where, llama, bert):
    """As a reward model does: the head reads the last token of a row."""
    swapped = [item for item in on_texts(bert, where) if not item.startswith("model.")]
    run = cli_here(where, *swapped, f"model.name_or_path={llama}", *STEPS)
    assert run.code == 0, run.err
    before, after = (run.record()["metrics"][when] for when in ("before", "after"))
    assert after["loss"] < before["loss"]
    again = cli_here(where, *swapped, f"model.name_or_path={llama}", "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0 and again.record()["adapters"][0]["saved_difference"] == 0.0, again.err


def test_a_classifier_resumed_is_the_one_uninterrupted(where, bert):
    given = [*on_texts(bert, where), *STEPS, "trainer.max_steps=4", "trainer.save_steps=2", "lora.lora_dropout=0.1"]
    whole = cli_here(where, *given, "hydra.run.dir=outputs/train/whole")
    assert whole.code == 0, whole.err
    torn = where / "outputs/train/torn"
    shutil.copytree(whole.run_dir, torn)
    for gone in ("checkpoints/checkpoint-4", "adapter"):
        shutil.rmtree(torn / gone)
    (torn / "record.json").write_text(json.dumps(whole.record() | {"status": "running"}))
    resumed = cli_here(where, *given, "action.resume=outputs/train/torn", "hydra.run.dir=outputs/train/resumed")
    assert resumed.code == 0, resumed.err
    files = [where / f"outputs/train/{name}/adapter/adapter_model.safetensors" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_accumulated_tags_are_learned_as_in_one_batch(tmp_path):
    """Sentences of unlike length: each tag counts the same, whichever part of the batch it is in."""
    bert = build_bert(tmp_path / "bert")
    settings = json.loads((bert / "config.json").read_text())
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (bert / "config.json").write_text(json.dumps(settings | dry))
    overrides = [*on_words(bert, tmp_path), *STEPS, "trainer.max_steps=2", "lora.lora_dropout=0"]
    found = []
    for size, parts in ((6, 1), (2, 3)):
        batches = [f"trainer.per_device_train_batch_size={size}", f"trainer.gradient_accumulation_steps={parts}"]
        found.append(cli_here(tmp_path, *overrides, *batches, "trainer.logging_steps=1"))
    losses = [one.record()["training"]["train_loss"] for one in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_wrong_kind_of_model_or_task_is_one_line(cli, tmp_path, bert, llama, spanish, where, on_tiny):
    swapped = [item for item in on_words(bert, where) if not item.startswith("model.")]
    check_failed(cli, tmp_path, [*swapped, f"model.name_or_path={llama}"], ["needs an encoder", "model=minilm"])
    tiny = [item for item in on_tiny(bert)]
    check_failed(cli, tmp_path, tiny, ["not a causal language model", "task=spanish_sentiment"])
    wrong = ["action=reload", f"adapter={spanish.run_dir}", *on_words(bert, where)]
    check_refused(cli, tmp_path, wrong, ["is a seq_cls adapter", "task=spanish_sentiment"])


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ("task.label_names=null", ["task.label_names is not set"]),
        ("task.label_names=[no,no]", ["names must be unique"]),
        ("trainer.packing=true", ["trainer.packing"]),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(cli, tmp_path, bert, where, change, fragments):
    check_refused(cli, tmp_path, [*on_texts(bert, where), change], fragments)


def test_a_label_that_is_not_known_is_named(cli, tmp_path, bert, where):
    check_failed(
        cli,
        tmp_path,
        [*on_texts(bert, where), "task.label_names=[a,b]"],
        ["row 1: label 'positive'", "is not among task.label_names (a, b)"],
    )


def test_a_text_longer_than_the_model_reads_is_cut(cli, bert, tmp_path):
    overrides = on_texts(bert, tmp_path)
    (tmp_path / "texts.jsonl").write_text(
        "".join(f'{{"text": "libro {n} {"muy " * 90}", "label": "{label}"}}\n' for n in range(20) for label in LABELS)
    )
    outcome = cli("action=evaluate", *overrides, "task.max_length=200")
    assert outcome.code == 0, outcome.err


def test_several_load_from_python(spanish, ner, bert):
    model = ["model=pretrained", f"model.name_or_path={bert}", "device=cpu", "active_adapter=ner"]
    net, _ = peftrun.load_adapter(f"{{spanish: {spanish.run_dir}, ner: {ner.run_dir}}}", *model)
    assert net.active_adapter == "ner" and net.config.id2label[0] == "O"


def test_entities_are_whole():
    assert extract_entities(["B-A", "I-A", "O", "I-B", "B-B", "I-A"]) == {
        (0, 2, "A"),
        (3, 4, "B"),
        (4, 5, "B"),
        (5, 6, "A"),
    }


def test_a_list_of_entities_becomes_tags():
    words = ["Bank", "of", "Ohio", "and", "Jane", "Roe", "and", "Bank"]
    listed = "[Bank of Ohio - ORGANIZATION, Jane Roe - PERSON, Bank - ORGANIZATION, Nowhere - LOCATION]"
    org, person = "ORGANIZATION", "PERSON"
    wanted = [f"B-{org}", f"I-{org}", f"I-{org}", "O", f"B-{person}", f"I-{person}", "O", f"B-{org}"]
    assert _parse_entity_list(words, listed) == wanted
    assert _parse_entity_list(words, "No entities found") == ["O"] * 8


def test_macro_f1_is_the_mean_of_the_labels():
    assert macro_f1([(0, 0), (0, 1), (1, 1), (1, 1)], 3) == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("which", ["texts", "words"])
def test_rows_that_are_cut_are_counted_aloud(cli, tmp_path, bert, which):
    overrides = (on_texts if which == "texts" else on_words)(bert, tmp_path)
    outcome = cli(*overrides, "action=evaluate", "task.max_length=4")
    assert outcome.code == 0, outcome.err
    assert "8 of 8 evaluation rows reach 4 tokens; the rest is cut off" in outcome.err


def test_a_label_that_is_not_known_is_found_wherever_it_stands(cli, tmp_path, bert):
    """Also where balancing or the number of rows would have left its row out."""
    rows = [{"text": f"t{n}", "label": ["no", "yes"][n % 2]} for n in range(40)]
    rows[20]["label"] = "maybe"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        "model=pretrained", f"model.name_or_path={bert}", "task=spanish_sentiment", "task.data.source=file",
        f"task.data.path={tmp_path / 'rows.jsonl'}", "task.label_names=[no,yes]", "task.data.num_test_rows=4", "action=evaluate",
    ]  # fmt: skip
    for more in (["task.data.balance=true"], ["task.data.balance=false", "task.data.num_train_rows=2"]):
        check_failed(
            cli, tmp_path, [*given, *more], ["row 21: label 'maybe'", "is not among task.label_names (no, yes)"]
        )
