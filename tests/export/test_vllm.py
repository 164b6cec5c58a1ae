"""target=vllm: what vLLM takes is written as it is, what it would get wrong is brought into a form it gets right, the rest is refused.

vLLM itself is not run: it needs a GPU. The rules are those of its source, see `peftrun/checks/vllm_support.py`.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama, cli_here
from faults import check_failed, check_refused
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftrun.adapters import probes
from peftrun.checks import vllm_support

ASKED = {  # one way to ask for what each rule refuses
    "methods other than LoRA": {"peft_type": "LOHA"},
    "classifiers": {"task_type": "SEQ_CLS"},
    "encoder-decoder": {"task_type": "SEQ_2_SEQ_LM"},
    "DoRA": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "(bias)": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [1]},
    "target_parameters": {"target_parameters": ["mlp.experts"]},
    "aLoRA": {"alora_invocation_tokens": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 1]]},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "QALoRA": {"use_qalora": True},
    "KaSA": {"kasa_config": {"beta": 1}},
    "Conv1D": {"fan_in_fan_out": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


def changed(trained, folder, **keys):
    """A copy of the adapter whose config says something else."""
    shutil.copytree(trained / "adapter", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return folder


def logits(llama, adapter):
    base, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    return probes.compute_probe_logits(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)


def test_each_rule_has_an_example():
    assert len(ASKED) == len(vllm_support.RULES)
    for (what, _, _), words in zip(vllm_support.RULES, ASKED, strict=True):
        assert words in what


@cases("words", ASKED, every=5)
def test_what_vllm_does_not_take_is_refused_with_what_to_do(cli, tmp_path, trained, words):
    folder = changed(trained, tmp_path / "other", **ASKED[words])
    line = (f"vLLM {vllm_support.VERSION} does not support", words)
    check_refused(cli, tmp_path, ["action=export", f"adapter={folder}", "target=vllm"], line)
    assert all(words_to_type for *_, words_to_type in vllm_support.RULES)


@cases("rank, most", [(1, 1), (2, 8), (8, 8), (9, 16), (100, 128), (257, 320), (512, 512)])
def test_the_rank_is_rounded_up_to_one_that_vllm_knows(rank, most):
    assert vllm_support.get_max_lora_rank(rank) == most


def test_several_adapters_in_one_folder_with_the_command(cli, trained, llama):
    both = f"adapter={{spam: {trained}, ham: {trained}}}"
    outcome = cli("action=export", both, "target=vllm", "base_model=me/tiny")
    assert outcome.code == 0, outcome.err
    folder = outcome.run_dir / "export"
    facts = json.loads((folder / "vllm.json").read_text())
    assert facts["command"] == (
        "vllm serve me/tiny --enable-lora --max-lora-rank 8 --max-loras 2 --lora-modules spam=spam ham=ham"
    )
    assert facts["run_with_vllm"] is False and facts["rules_of"] == f"vLLM {vllm_support.VERSION}"
    assert "vllm serve me/tiny --enable-lora" in outcome.out
    for name in ("spam", "ham"):
        assert (logits(llama, folder / name) == logits(llama, trained / "adapter")).all()


def test_the_script_serves_from_its_own_folder_whatever_the_base(cli, tmp_path, trained):
    """Run with a `vllm` that says what it was given."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "vllm"
    stand_in.write_text('#!/bin/sh\npwd\necho "$@"\n')
    stand_in.chmod(0o755)
    folder = cli("action=export", f"adapter={{spam: {trained}}}", "target=vllm").run_dir / "export"
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def launched(**env):
        return subprocess.run(
            [folder / "launch.sh", "--port", "9"],
            env=os.environ | path | env,
            capture_output=True,
            text=True,
            check=False,
        )

    told = launched()
    assert told.returncode != 0 and "set BASE to the base model" in told.stderr
    place, line = launched(BASE="/models/a base").stdout.splitlines()
    assert (
        place == str(folder)
        and line.startswith("serve /models/a base --enable-lora")
        and line.endswith("spam=./spam --port 9")
    )


@pytest.mark.slow
@cases("method", ["lora", "rslora", "pissa", "lora_rank_pattern"])
def test_what_is_written_answers_as_the_adapter_does(where, llama, on_tiny, method):
    more = ["lora.use_rslora=true"] if method == "lora_rank_pattern" else []
    run = cli_here(where, *on_tiny(llama), *TINY_STEPS, f"lora={method}", *more).run_dir
    outcome = cli_here(where, "action=export", f"adapter={run}", "target=vllm")
    assert outcome.code == 0, outcome.err
    folder = outcome.run_dir / "export" / "default"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert (logits(llama, folder) - logits(llama, run / "adapter")).abs().max() < 1e-5
    one = json.loads((folder.parent / "vllm.json").read_text())
    assert one["adapters"]["default"]["brought_to_one_rank"] is (method == "lora_rank_pattern")
    assert one["adapters"]["default"]["rank"] == config["r"] <= one["max_lora_rank"]
    if method == "lora_rank_pattern":
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (16, 16, False)


@pytest.mark.slow
def test_adapters_of_different_bases_are_refused(where, trained, on_tiny):
    other = cli_here(where, *on_tiny(build_llama(where / "other", seed=1)), *TINY_STEPS).run_dir
    outcome = cli_here(where, "action=export", f"adapter={{a: {trained}, b: {other}}}", "target=vllm")
    assert outcome.code == 1 and "was made for another base model than adapter.a" in outcome.err
    assert outcome.run_dir is None


def test_a_base_without_lora_in_vllm_is_refused(cli, gpt2, on_tiny, tmp_path):
    run = cli(*on_tiny(gpt2), *TINY_STEPS).run_dir
    check_refused(cli, tmp_path, ["action=export", f"adapter={run}", "target=vllm"], ("Conv1D layers (GPT-2)",))


@pytest.mark.slow
def test_embeddings_go_where_the_base_s_class_adapts_them(where, llama, on_tiny, cli, tmp_path):
    run = cli_here(where, *on_tiny(llama), *TINY_STEPS, "lora.target_modules=[q_proj,embed_tokens]").run_dir
    done = cli("action=export", f"adapter={run}", "target=vllm")
    assert done.code == 0, done.err
    shutil.copytree(run / "adapter", tmp_path / "elsewhere")
    asked = [
        "action=export",
        f"adapter={tmp_path / 'elsewhere'}",
        "target=vllm",
        "model=pretrained",
        "model.name_or_path=org/nowhere",
    ]
    check_failed(cli, tmp_path, asked, ("does not adapt embed_tokens",))


def wrapped(llama: Path, folder: Path, prefix: str) -> Path:
    """A checkpoint as those of Gemma 3 or Qwen 3.5: the language model beside a vision tower with layers of its own."""
    config = json.loads((llama / "config.json").read_text())
    folder.mkdir()
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer))
    tensors = load_file(llama / "model.safetensors")
    inner = {name.replace("model.", prefix, 1): value for name, value in tensors.items()}
    vision = {name.replace("model.", "vision_tower.", 1): value + 1 for name, value in tensors.items()}
    save_file(inner | vision if prefix else vision, folder / "model.safetensors")
    return folder


@cases("prefix", ["language_model.model.", "model.language_model.", ""])
def test_an_adapter_of_an_inner_language_model_gets_the_names_of_its_checkpoint(prefix, cli, tmp_path, trained, llama):
    base, adapter = wrapped(llama, tmp_path / "base", prefix), shutil.copytree(trained / "adapter", tmp_path / "made")
    asked = ["action=export", f"adapter={adapter}", "target=vllm", "model=pretrained", f"model.name_or_path={base}"]
    if not prefix:
        check_failed(cli, tmp_path, asked, ("a larger model around a language model", "model.name_or_path=FOLDER"))
        return
    outcome = cli(*asked)
    assert outcome.code == 0 and "renamed for Gemma3ForConditionalGeneration" in outcome.err, outcome.err
    old, new = (
        load_file(one / "adapter_model.safetensors") for one in (adapter, outcome.run_dir / "export" / "default")
    )
    renamed = {
        name.replace("base_model.model.model.", f"base_model.model.{prefix}"): value for name, value in old.items()
    }
    assert new.keys() == renamed.keys() and all(torch.equal(new[name], renamed[name]) for name in new)
    after = outcome.out.split("next:")[1]
    assert "vllm serve" in after and "model=pretrained" not in after


def test_the_docs_name_every_rule():
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert vllm_support.VERSION in text
    for what, _, _ in vllm_support.RULES:
        assert re.sub(r"\(.*\)", "", what).strip() in text, what
