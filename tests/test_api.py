"""The public surface, and that Python and the command line do the same."""

import pytest
import torch

import peftrun
from peftrun.io.atomic_files import hash_file, hash_files


def test_the_public_surface_is_frozen_and_importable():
    assert sorted(peftrun.__all__) == [
        "AdapterError", "ArtifactError", "ConfigError", "DataError", "DeviceError", "ModelError", "PeftrunError", "ProofError",
        "RunResult", "RunSpec", "load", "load_adapter", "run",
    ]  # fmt: skip
    assert all(getattr(peftrun, name) for name in peftrun.__all__)
    with pytest.raises(AttributeError):
        _ = peftrun.nothing


def test_run_is_the_command_line(tmp_path, trained, llama, on_tiny):
    steps = ["trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]
    result = peftrun.run(*on_tiny(llama), *steps, out_dir=tmp_path / "run")
    name = "adapter/adapter_model.safetensors"
    assert hash_file(tmp_path / "run" / name) == hash_file(trained / name)
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]


def test_a_config_is_loaded_first_and_run_then(tmp_path, monkeypatch, trained, llama, on_tiny):
    monkeypatch.chdir(tmp_path)
    steps = ["trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.logging_steps=1", "trainer.save_steps=2"]
    config = peftrun.load(*on_tiny(llama), *steps)
    assert isinstance(config, peftrun.RunSpec) and config.trainer.max_steps == 4 and not (tmp_path / "outputs").exists()
    result = peftrun.run(config)
    assert result.out_dir.parent.parts == ("outputs", "train")
    name = "adapter/adapter_model.safetensors"
    assert hash_file(result.out_dir / name) == hash_file(trained / name)
    with pytest.raises(TypeError, match="a config is complete"):
        peftrun.run(config, "lora.r=4")


def test_team_configs_are_for_python_too(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "ours.yaml").write_text("defaults:\n  - lora\n  - _self_\n\nr: 3\n")
    assert peftrun.load("lora=ours", config_dirs=[tmp_path]).lora.r == 3


def test_a_run_from_python_says_what_it_was_asked_as_one_from_the_command_line(tmp_path, cli, trained):
    from peftrun.artifacts import run_overrides

    typed = cli("action=inspect", f"adapter={trained}")
    called = peftrun.run("action=inspect", f"adapter={trained}", out_dir=tmp_path / "called").out_dir
    assert (
        run_overrides.read_overrides(called)
        == run_overrides.read_overrides(typed.run_dir)
        == ["action=inspect", f"adapter={trained}"]
    )
    assert run_overrides.read_search_path(called) == run_overrides.read_search_path(typed.run_dir) == []


def test_load_adapter_gives_a_model_that_answers(trained, llama, on_tiny):
    model, tokenizer = peftrun.load_adapter(str(trained), *on_tiny(llama))
    with torch.no_grad():
        logits = model(**tokenizer("hi", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer) and model.active_adapter == "default"


def test_a_folder_that_holds_a_run_is_left_alone(trained, llama, on_tiny):
    before = hash_files(trained, [trained], {})
    with pytest.raises(peftrun.ArtifactError, match="holds a run already"):
        peftrun.run(*on_tiny(llama), out_dir=trained)
    assert hash_files(trained, [trained], {}) == before


def test_faults_are_exceptions(tmp_path):
    with pytest.raises(peftrun.ConfigError, match=r"lora\.r=0"):
        peftrun.run("lora.r=0", out_dir=tmp_path / "run")
    with pytest.raises(peftrun.ConfigError, match=r"lora\.rr=1: there is no such key"):
        peftrun.run("lora.rr=1", out_dir=tmp_path / "run")
