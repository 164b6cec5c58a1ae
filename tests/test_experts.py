"""A mixture of experts: LoRA on weights that are parameters and no Linear layers, from training to a proved merge."""

import pytest
import torch
from conftest import TINY_STEPS, _tokenizer
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-mixtral"
    torch.manual_seed(0)
    tokenizer = _tokenizer(chat=True)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_experts_are_adapted_trained_reloaded_and_merged(cli, mixtral, on_tiny):
    run = cli(*on_tiny(mixtral), *TINY_STEPS, "lora=lora_moe", "lora.r=4")
    assert run.code == 0, run.err
    saved = load_file(run.run_dir / "adapter" / "adapter_model.safetensors")
    factors = {key: value for key, value in saved.items() if ".experts." in key and "lora_B" in key}
    assert len(factors) == 4 and all(value.abs().sum() > 0 for value in factors.values())
    assert any("q_proj.lora_B" in key for key in saved)
    again = cli(*on_tiny(mixtral), "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    proof = again.record()["adapters"][0]
    assert proof["saved_difference"] < 1e-4 and proof["delta_norm"] > 0
    merged = cli(*on_tiny(mixtral), "action=merge", f"adapter={run.run_dir}")
    assert merged.code == 0, merged.err
    assert merged.record()["merge"]["max_logit_difference"] < 1e-3


def test_a_parameter_that_is_not_there_is_named(cli, mixtral, on_tiny):
    found = cli(*on_tiny(mixtral), "lora=lora_moe", "lora.target_parameters=[mlp.experts.nosuch]")
    assert found.code == 1 and "lora.target_parameters=mlp.experts.nosuch" in found.err and "Traceback" not in found.err
