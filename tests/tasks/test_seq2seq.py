"""Texts into texts: learned, reloaded as it was, merged with proof, answered (on a random T5: how it works, not how well)."""

import json
import sys
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, cli_here
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from encoders import build_t5

from peftrun.composition.spec import build_spec

WORDS = ["el", "la", "libro", "muy", "bueno", "malo", "Ana", "Luis", "Lima", "Quito"]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("seq2seq")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = build_t5(tmp_path_factory.mktemp("models") / "tiny-t5")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dropout_rate": 0.0}))
    return folder


@pytest.fixture(scope="module")
def given(where, t5):
    rows = [{"en": f"{a} {b}", "es": b} for a in WORDS for b in WORDS[:4]]
    file = where / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=pretrained", f"model.name_or_path={t5}", "task=translation", "task.data.source=file", f"task.data.path={file}",
        "task.prompt_template='{en}'", "task.completion_template='{es}'", "task.data.num_test_rows=8", "device=cpu", "device.dtype=float32",
        "trainer.learning_rate=1e-2", "trainer.warmup_steps=0", "trainer.logging_steps=5", "trainer.save_strategy=no",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def learned(where, given):
    run = cli_here(where, *given, "trainer.max_steps=30", "action.num_samples=1")
    assert run.code == 0, run.err
    return run


def test_it_learns(learned):
    before, after = (learned.record()["metrics"][when] for when in ("before", "after"))
    assert after["loss"] < 0.6 * before["loss"] and after["perplexity"] < before["perplexity"]


PENALISED = ["lora=adalora", "lora.tinit=1", "lora.tfinal=1", "lora.orth_reg_weight=50", "trainer.max_steps=3", "action.num_samples=0"]  # fmt: skip


@cases("method", [[], PENALISED])
def test_it_reloads_as_it_was(learned, where, given, method):
    run = cli_here(where, *given, *method) if method else learned
    assert (run.record()["training"]["train_loss"] > 50) is bool(method)  # AdaLoRA's penalty is part of what is learned
    again = cli_here(where, *given, "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] <= (1e-5 if method else 0.0)
    assert again.record()["metrics"] == pytest.approx(run.record()["metrics"]["after"], rel=1e-5)


def test_it_merges_with_proof(learned, where, given):
    merged = cli_here(where, *given, "action=merge", f"adapter={learned.run_dir}", "action.num_eval_rows=16")
    assert merged.code == 0, merged.err
    figures = merged.record()["merge"]
    assert figures["streamed"] and figures["held_out_rows"] == 8 and figures["max_logit_difference"] < 1e-3


def test_it_answers_without_repeating_what_it_read(learned, where, given):
    said = cli_here(
        where,
        *given,
        "action=generate",
        f"adapter={learned.run_dir}",
        "action.prompt=el libro",
        "action.max_new_tokens=4",
    )
    assert said.code == 0, said.err
    assert json.loads((said.run_dir / "generations.jsonl").read_text())["prompt"] == "el libro"


def test_exact_match_is_what_greedy_decoding_writes(learned, given):
    import peftrun

    net, tokenizer = peftrun.load_adapter(str(learned.run_dir), *given)
    from peftrun import tasks
    from peftrun.composition import compose

    spec = build_spec(compose.compose_run((*given, "action=evaluate")).cfg)
    rows = tasks.import_task_module("seq2seq").load_rows(spec.task, tokenizer).held_out
    found = tasks.import_task_module("seq2seq").evaluate(net, tokenizer, rows, 3, spec.task)["exact_match"]
    right = 0
    for row in rows:
        out = net.generate(input_ids=torch.tensor([row.ids]), max_new_tokens=len(row.target), do_sample=False)[0, 1:]
        right += out.tolist()[: len(row.target)] == row.target
    assert found == right / len(rows)


def test_accumulated_batches_learn_what_one_batch_does(where, given):
    found = []
    for size, parts in ((4, 1), (2, 2)):
        more = [
            f"trainer.per_device_train_batch_size={size}",
            f"trainer.gradient_accumulation_steps={parts}",
            "trainer.max_steps=4",
            "action.num_samples=0",
        ]
        run = cli_here(where, *given, *more)
        assert run.code == 0, run.err
        found.append(load_file(run.run_dir / "adapter" / "adapter_model.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], atol=1e-4, rtol=1e-3)


def test_a_task_of_the_other_kind_is_refused(cli, llama, on_tiny, given, t5):
    found = cli(*on_tiny(t5), *TINY_STEPS)
    assert found.code == 1 and "has an encoder and a decoder; type task=translation" in found.err
    found = cli(*[one if "name_or_path" not in one else f"model.name_or_path={llama}" for one in given])
    assert found.code == 1 and "has no separate decoder" in found.err


def test_a_catalogue_is_read_without_its_doubtful_entries(tmp_path):
    pytest.importorskip("polib")
    from peftrun.data import gettext_po

    (tmp_path / "a.po").write_text(
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "yes"\nmsgstr "sí"\n\n#, fuzzy\nmsgid "no"\nmsgstr "nunca"\n\n'
        'msgid "open"\nmsgstr ""\n\nmsgid "one"\nmsgid_plural "many"\nmsgstr[0] "uno"\nmsgstr[1] "muchos"\n\n#~ msgid "old"\n#~ msgstr "viejo"\n'
    )
    assert gettext_po.read_po_entries(tmp_path / "a.po") == [{"msgid": "yes", "msgstr": "sí"}]
