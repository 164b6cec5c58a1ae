"""Chat template, special tokens and new tokens from the config: trained with, saved beside the adapter, used again without being typed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_gpt2, build_llama, jsonl
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftrun
from peftrun.artifacts import fingerprint
from peftrun.errors import PeftrunError
from peftrun.models import base as base_models
from peftrun.models.tokenizer import load_tokenizer_info

NEW = ["<|user|>", "<tool>"]
TOKENS = [f"model.new_tokens={json.dumps(NEW)}", 'model.special_tokens={pad: "<|user|>"}']
EMBEDDINGS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
ROWS = "base_model.model.{}.token_adapter.trainable_tokens_delta"
TEMPLATE = (
    "{% for m in messages %}<tool>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<tool>assistant {% endif %}"
)
CPU = ["device=cpu", "device.dtype=float32"]
BASES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "padded": {"tie_word_embeddings": False, "vocab_size": 512},
}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def on_talks(on_tiny, tmp_path_factory):
    """Overrides that train a tiny model on conversations with a new token in them."""
    question = {"role": "user", "content": "<tool> even?"}
    rows = [{"messages": [question, {"role": "assistant", "content": f"{n} <|user|>"}]} for n in range(24)]
    file = jsonl(tmp_path_factory.mktemp("talks") / "talks.jsonl", rows)

    def overrides(model: Path, *more: str) -> list[str]:
        steps = [] if "action=preview" in more else TINY_STEPS
        return [*on_tiny(model), "task=chat", "task.data.source=file", f"task.data.path={file}", *steps, *more]

    return overrides


@cases("name", BASES, every=3)
def test_new_tokens_are_trained_saved_reloaded_and_merged(name, on_talks, cli, tmp_path):
    base = build_llama(tmp_path / "base", **BASES[name])
    own, known = digests(base), len(AutoTokenizer.from_pretrained(base))
    layers = ["model.embed_tokens"] + ["lm_head"] * (name != "tied")
    run = cli(*on_talks(base, *TOKENS, "lora.target_modules=[q_proj]", "model.pad_vocab_to_multiple_of=8"))
    assert run.code == 0, run.err
    record, adapter = run.record(), run.run_dir / "adapter"
    assert record["base"]["fingerprint"]["weights"] == fingerprint.fingerprint_model(base).weights
    assert record["base"]["tokens"]["new_tokens"] == NEW and "unused_keys" not in str(record.get("unused_keys"))
    trained = load_file(adapter / "adapter_model.safetensors")
    rows = {layer: trained[ROWS.format(layer)] for layer in layers}
    assert sum("trainable_tokens" in key for key in trained) == len(layers)
    assert {value.shape for value in rows.values()} == {(2, 32)}
    assert (adapter / "adapter_model.safetensors").stat().st_size < 20_000
    assert AutoTokenizer.from_pretrained(adapter).pad_token == "<|user|>"

    reloaded = cli("action=reload", f"adapter={run.run_dir}", "action.evaluate=false", *CPU)
    assert reloaded.code == 0, reloaded.err
    assert "equals what was saved  max |Δlogit| 0\n" in reloaded.out
    merged = cli("action=merge", f"adapter={run.run_dir}", "action.output_dir=merged", "action.num_eval_rows=4")
    assert merged.code == 0, merged.err
    assert merged.record()["merge"]["streamed"]
    written, stored = load_file("merged/model.safetensors"), load_file(base / "model.safetensors")
    for layer, values in rows.items():
        weight, before = written[f"{layer}.weight"], stored[f"{layer}.weight"]
        assert len(weight) == (512 if name == "padded" else -(-(known + 2) // 8) * 8)
        assert weight[:known].view(torch.int32).equal(before[:known].view(torch.int32)), "the other rows, bit for bit"
        assert weight[known : known + 2].equal(values) and not values.equal(values.roll(1, 0))
        mean = before[:known].mean(0)
        if name != "padded":
            assert torch.allclose(weight[known + 2 :], mean.expand(len(weight) - known - 2, -1), atol=1e-6)
    assert (OUTPUT in written) == (name != "tied")
    assert digests(base) == own

    # the same adapter without its run, on the base model's own folder: by peftrun, and by PEFT with resized embeddings
    shutil.copytree(adapter, "alone")
    on_base = [
        "action=reload",
        "adapter=alone",
        "action.evaluate=false",
        "model=pretrained",
        f"model.name_or_path={base}",
        *CPU,
    ]
    assert cli(*on_base).code == 0
    refused = cli(*on_base, "model.new_tokens=null", "model.special_tokens=null")
    assert refused.code == 1 and "another tokenizer" in refused.err
    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        AutoTokenizer.from_pretrained("alone"),
    )
    if name != "padded":
        plain.resize_token_embeddings(len(tokenizer))
    ids = tokenizer("<tool> Is it spam? <|user|>", return_tensors="pt")["input_ids"]
    expected = PeftModel.from_pretrained(plain, "alone")(ids).logits[..., : known + 2]
    found = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)(ids).logits[..., : known + 2]
    assert torch.allclose(expected, found, atol=1e-4)


def test_a_template_is_that_of_the_adapter_from_then_on(on_talks, cli, tmp_path):
    base, file = build_gpt2(tmp_path / "base"), tmp_path / "mine.jinja"
    plain = cli(*on_talks(base, "action=preview"))
    assert plain.code == 0 and "model.chat_template=chatml" in plain.err, plain.err
    file.write_text(TEMPLATE)
    settings = ["model.chat_template=mine.jinja", *TOKENS[:1], 'model.special_tokens={eos: "<|im_end|>"}']
    preview = cli(*on_talks(base, *settings, "action=preview"))
    run = cli(*on_talks(base, *settings, "lora.target_modules=[c_attn]"))
    assert run.code == 0 == preview.code, run.err + preview.err
    assert "model.chat_template=chatml" not in run.err
    rows = [(outcome.run_dir / "rows.jsonl").read_text().splitlines()[0] for outcome in (preview, run)]
    assert rows[0] == rows[1] and "<tool>assistant" in rows[0]

    replayed = cli("action=replay", f"run={run.run_dir}")
    assert replayed.code == 0 and "identical" in replayed.out, replayed.out + replayed.err
    file.write_text(TEMPLATE.replace("<tool>", ""))
    drifted = cli("action=replay", f"run={run.run_dir}", "check_only=true")
    assert "base chat template" in drifted.err
    file.unlink()
    answered = cli("action=generate", f"adapter={run.run_dir}", "action.prompt=spam", "action.max_new_tokens=4")
    assert answered.code == 0, answered.err
    used = peftrun.load("action=evaluate", f"adapter={run.run_dir}").model
    assert used.chat_template == str(run.run_dir / "adapter" / "chat_template.jinja") and used.new_tokens == NEW
    info = load_tokenizer_info(used, None)
    assert info.tokenizer.eos_token == "<|im_end|>" and info.tokenizer.chat_template == TEMPLATE
    saved = base_models.resolve_base_dir(used)
    assert json.loads((saved / "config.json").read_text())["eos_token_id"] == info.tokenizer.eos_token_id
    typed = peftrun.load("action=evaluate", f"adapter={run.run_dir}", "model.chat_template=chatml").model
    assert typed.chat_template == "chatml"


REFUSED = {  # what is typed → parts of the one line
    "model.chat_template=chatmll": ["model.chat_template=chatmll", "did you mean chatml"],
    "model.chat_template=broken.jinja": ["model.chat_template=broken.jinja", "line 2", "null"],
    "model.chat_template=raising.jinja": ["model.chat_template=raising.jinja", "never"],
    'model.new_tokens=["<a>", "<a>"]': ["model.new_tokens", "<a> more than once"],
    'model.new_tokens=[" "]': ["model.new_tokens", "visible"],
    "model.pad_vocab_to_multiple_of=64": ["model.pad_vocab_to_multiple_of=64", "model.new_tokens"],
    'model.special_tokens={end: "<a>"}': ["model.special_tokens", "eos"],
    'lora=ia3 model.new_tokens=["<a>"]': ["model.new_tokens", "lora.method=ia3", "lora=lora"],
    'model.special_tokens={eos: "<a>"}': ["model.special_tokens.eos=<a>", "model.new_tokens"],
    'model.new_tokens=["<|im_end|>"]': ["model.new_tokens", "<|im_end|>", "leave them out"],
}


@cases("typed", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(typed, llama, on_talks, tmp_path):
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}\n{{ m.role }\n{% endfor %}")
    (tmp_path / "raising.jinja").write_text("{{ raise_exception('never') }}")
    key = typed.split()[0] if typed.startswith("lora=") else ""
    overrides = [key, typed.removeprefix(key).strip()] if key else [typed]
    with pytest.raises(PeftrunError) as refused:
        base_models.resolve_base_dir(peftrun.load(*on_talks(llama, *overrides)).model)
    (line,) = refused.value.lines
    assert not [part for part in REFUSED[typed] if part not in line], line


def test_cells_with_new_tokens_are_what_they_are_alone(on_talks, cli, tmp_path):
    base = build_llama(tmp_path / "base", tie_word_embeddings=False)
    overrides = on_talks(base, *TOKENS, "lora.target_modules=[q_proj]")
    swept = cli("-m", *overrides, "seed=1,2", "lora.r=2", "hydra/launcher=shared_base")
    assert swept.code == 0, swept.err
    cells = sorted(Path("outputs").glob("**/adapter/adapter_model.safetensors"))
    assert len(cells) == 2
    for cell in cells:
        record = json.loads((cell.parents[1] / "record.json").read_text())
        assert record["joint_training"]["cells"] == 2
        lone = cli(*overrides, f"seed={record['seed']}", "lora.r=2")
        assert lone.code == 0, lone.err
        alone, jointly = load_file(lone.run_dir / "adapter" / cell.name), load_file(cell)
        assert alone.keys() == jointly.keys() and ROWS.format("lm_head") in alone
        assert all(torch.allclose(alone[key], jointly[key], atol=1e-5) for key in alone)
