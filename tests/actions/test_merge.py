"""action=merge: the written model is the adapter on its base, and neither of them was touched."""

import shutil
from itertools import product

import pytest
from cases import cases
from conftest import TINY_STEPS
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftrun.adapters import probes
from peftrun.adapters.merge import verify
from peftrun.io.atomic_files import hash_files


@cases("base, method", product(["llama", "gpt2"], ["lora", "rslora", "dora", "pissa", "olora"]))
def test_merged_is_adapter_on_base(cli, request, on_tiny, base, method):
    if (base, method) == ("gpt2", "olora"):
        return  # PEFT cannot start OLoRA on Conv1D: refused, see test_bad_input
    overrides = on_tiny(request.getfixturevalue(base))
    trained = cli(*overrides, *TINY_STEPS, f"lora={method}")
    assert trained.code == 0, trained.err
    merged = cli(*overrides, "action=merge", f"adapter={trained.run_dir}")
    assert merged.code == 0, merged.err
    figures = merged.record()["merge"]
    assert figures["max_logit_difference"] < 1e-4 < figures["max_logit_difference_from_base"]
    assert figures["top1_agreement"] == 1.0


def test_base_and_adapter_are_untouched(cli, trained, llama, on_tiny):
    before = hash_files(llama, [llama, trained / "adapter"], {})
    cli(*on_tiny(llama), "action=merge", f"adapter={trained}")
    assert hash_files(llama, [llama, trained / "adapter"], {}) == before


BESIDE = ("additional_chat_templates/tool_use.jinja", "qwen.tiktoken", "source.spm", "1_Pooling/config.json", "LICENSE")
NOT_BESIDE = (
    "onnx/model.onnx",
    "onnx/config.json",
    "pytorch_model.bin",
    "model.safetensors.index.json.bak/x.pt",
    ".git/HEAD",
)


@cases("how", ["streamed", "in memory"])
def test_the_written_model_and_all_that_lies_beside_it_load_by_themselves(how, cli, tmp_path, trained, llama, on_tiny):
    folder = shutil.copytree(llama, tmp_path / "tiny-llama")
    for name in (*BESIDE, *NOT_BESIDE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    kind = [] if how == "streamed" else ["lora=adalora", "lora.tinit=1", "lora.tfinal=2"]
    adapter = trained if not kind else cli(*on_tiny(llama), *TINY_STEPS, *kind, "trainer.max_steps=6").run_dir
    outcome = cli(*on_tiny(folder), "action=merge", f"adapter={adapter}")
    assert outcome.code == 0 and outcome.record()["merge"]["streamed"] == (not kind), outcome.err
    merged = outcome.run_dir / "merged"
    assert all((merged / name).read_text() == name for name in BESIDE)
    assert not any((merged / name).exists() for name in NOT_BESIDE)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    values = probes.compute_probe_logits(AutoModelForCausalLM.from_pretrained(merged).eval(), tokenizer)
    base = probes.compute_probe_logits(AutoModelForCausalLM.from_pretrained(llama).eval(), tokenizer)
    assert probes.compare_logits(base, values)["max_logit_difference"] > 1e-3
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template


@cases("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_the_result_can_be_chosen(cli, trained, llama, on_tiny, dtype):
    outcome = cli(*on_tiny(llama), "action=merge", f"adapter={trained}", f"action.dtype={dtype}")
    written = AutoModelForCausalLM.from_pretrained(outcome.run_dir / "merged", dtype="auto")
    assert str(written.dtype) == f"torch.{dtype}"
    assert 0 < outcome.record()["merge"]["max_logit_difference"] < 0.1


def test_proof_can_be_left_out_and_that_is_recorded(cli, trained, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "action=merge", f"adapter={trained}", "action.verify=false")
    assert outcome.record()["merge"]["verified"] is False and "skipped (action.verify=false)" in outcome.out


def test_the_folder_can_be_chosen(cli, tmp_path, trained, llama, on_tiny):
    outcome = cli(*on_tiny(llama), "action=merge", f"adapter={trained}", f"action.output_dir={tmp_path / 'mine'}")
    assert outcome.code == 0 and (tmp_path / "mine" / "model.safetensors").is_file()
    assert "../../../mine/model.safetensors" in outcome.record()["artifacts"]


def test_a_merge_that_is_not_the_adapter_is_refused(llama, gpt2):
    one = probes.compute_probe_logits(
        AutoModelForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)
    )
    with pytest.raises(verify.ProofError, match="is not the adapter on its base"):
        verify.compare_logits(one, one + 1.0 * (one == one.max()), one, "float32")
    with pytest.raises(verify.ProofError, match="own effect is"):  # the base itself, for an adapter of small effect
        verify.compare_logits(one + 1e-3, one, one, "float32")
