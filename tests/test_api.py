"""The public surface, and that Python and the command line do the same."""

import pytest
import torch

import peftrun
from peftrun.artifacts import digests, sha256


def test_the_public_surface_is_frozen_and_importable():
    assert sorted(peftrun.__all__) == [
        "AdapterError", "ArtifactError", "ConfigError", "DataError", "DeviceError", "ModelError", "PeftrunError", "ProofError",
        "RunResult", "load", "run",
    ]  # fmt: skip
    assert all(getattr(peftrun, name) for name in peftrun.__all__)
    with pytest.raises(AttributeError):
        _ = peftrun.nothing


def test_run_is_the_command_line(tmp_path, trained, llama, on_tiny):
    steps = ["trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]
    result = peftrun.run(*on_tiny(llama), *steps, out_dir=tmp_path / "run")
    name = "adapter/adapter_model.safetensors"
    assert sha256(tmp_path / "run" / name) == sha256(trained / name)
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]


def test_load_gives_a_model_that_answers(trained, llama, on_tiny):
    model, tokenizer = peftrun.load(str(trained), *on_tiny(llama))
    with torch.no_grad():
        logits = model(**tokenizer("hi", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer) and model.active_adapter == "default"


def test_a_folder_that_holds_a_run_is_left_alone(trained, llama, on_tiny):
    before = digests(trained, trained)
    with pytest.raises(peftrun.ArtifactError, match="holds a run already"):
        peftrun.run(*on_tiny(llama), out_dir=trained)
    assert digests(trained, trained) == before


def test_faults_are_exceptions(tmp_path):
    with pytest.raises(peftrun.ConfigError, match=r"lora\.r=0"):
        peftrun.run("lora.r=0", out_dir=tmp_path / "run")
    with pytest.raises(peftrun.ConfigError, match=r"lora\.rr=1: there is no such key"):
        peftrun.run("lora.rr=1", out_dir=tmp_path / "run")
