"""action=reload: a fresh process proves what was saved; what is not applied, or not right, is refused."""

import json
import shutil
from itertools import product

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama, subprocess_cli
from safetensors.torch import load_file, save_file

from peftrun.models import base as base_models
from peftrun.models import placement
from peftrun.system import environment


def copied(trained, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(trained / "adapter", target)
    return target


@pytest.mark.slow
def test_a_fresh_process_finds_the_very_same_answers(tmp_path, trained, llama, on_tiny):
    outcome = subprocess_cli(tmp_path, *on_tiny(llama), "action=reload", f"adapter={trained}")
    record = outcome.record()
    proof = record["adapters"][0]
    after = json.loads((trained / "record.json").read_text())["metrics"]["after"]
    assert proof["saved_difference"] == 0.0 and proof["base_checked"]
    assert proof["effect"]["max_logit_difference"] > 0 and proof["delta_norm"] > 0
    assert proof["tensors"] == 2 * proof["modules"] == 28
    assert record["metrics"] == after


def test_it_says_where_every_adapted_module_is(cli, trained, llama, on_tiny):
    placement = cli(*on_tiny(llama), "action=reload", f"adapter={trained}").record()["placement"]
    assert placement == {"active_adapters": ["default"], "adapted_modules": {"cpu float32": 14}}


def test_evaluation_can_be_left_out(cli, trained, llama, on_tiny):
    assert (
        cli(*on_tiny(llama), "action=reload", "action.evaluate=false", f"adapter={trained}").record()["metrics"] == {}
    )


def test_several_adapters_load_under_their_names_and_one_answers(cli, trained, llama, on_tiny):
    both = f"adapter={{one: {trained}, two: {trained}}}"
    record = cli(*on_tiny(llama), "action=reload", both, "active_adapter=two").record()
    assert [proof["name"] for proof in record["adapters"]] == ["one", "two"]
    assert record["placement"]["active_adapters"] == ["two"]


def test_an_adapter_that_changes_nothing_is_refused(cli, tmp_path, trained, llama, on_tiny):
    folder = copied(trained, tmp_path)
    file = folder / "adapter_model.safetensors"
    save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 1 and "changes nothing" in outcome.err


def test_an_adapter_altered_after_it_was_saved_is_refused(cli, tmp_path, trained, llama, on_tiny):
    folder = copied(trained, tmp_path)
    file = folder / "adapter_model.safetensors"
    save_file({key: value * 3 for key, value in load_file(file).items()}, file)
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 1 and "answers otherwise than when it was saved" in outcome.err


@cases("drop, told", [(True, "not in the file"), (False, "no place in the model")])
def test_missing_and_unexpected_tensors_are_named(cli, tmp_path, trained, llama, on_tiny, drop, told):
    folder = copied(trained, tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    if drop:
        del tensors[name]
    else:
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    save_file(tensors, file)
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 1 and told in outcome.err and "first: base_model" in outcome.err


def test_another_base_is_refused_unless_allowed(cli, tmp_path, trained, on_tiny):
    other = build_llama(tmp_path / "other-llama", seed=5)
    refused = cli(*on_tiny(other), "action=reload", f"adapter={trained}")
    assert refused.code == 1 and "was made for base tiny-llama" in refused.err and "other-llama" in refused.err
    allowed = cli(*on_tiny(other), "action=reload", f"adapter={trained}", "allow_base_mismatch=true")
    assert allowed.code == 0 and "as allowed" in allowed.err
    assert allowed.record()["adapters"][0]["base_checked"] is False


def test_an_adapter_made_elsewhere_loads_with_a_warning(cli, tmp_path, trained, llama, on_tiny):
    folder = copied(trained, tmp_path)
    (folder / "peftrun.json").unlink()
    outcome = cli(*on_tiny(llama), "action=reload", f"adapter={folder}")
    assert outcome.code == 0 and "was not made by peftrun" in outcome.err


def test_a_base_saved_in_other_files_is_the_same_base(cli, tmp_path, trained, llama, on_tiny):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    shutil.copytree(llama, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    outcome = cli(*on_tiny(sharded), "action=reload", f"adapter={trained}")
    assert outcome.code == 0 and outcome.record()["adapters"][0]["base_checked"]


@cases("base, dtype", product(["llama", "gpt2"], ["float32", "bfloat16"]))
def test_a_proof_alone_needs_no_base_in_memory_and_is_the_same_proof(cli, request, on_tiny, monkeypatch, base, dtype):
    overrides = [*on_tiny(request.getfixturevalue(base)), f"device.dtype={dtype}"]
    trained = cli(*overrides, *TINY_STEPS)
    whole = cli(*overrides, "action=reload", f"adapter={trained.run_dir}")
    monkeypatch.setattr(base_models, "load_base", None)  # nobody calls it
    alone = cli(*overrides, "action=reload", "action.evaluate=false", f"adapter={trained.run_dir}")
    assert alone.code == 0, alone.err
    (one,), (other,) = whole.record()["adapters"], alone.record()["adapters"]
    assert one["tensors"] == other["tensors"] and one["delta_norm"] == pytest.approx(other["delta_norm"])
    effect = one["effect"]["max_logit_difference"]
    assert other["effect"]["max_logit_difference"] == pytest.approx(effect, rel=0.1)
    assert other["saved_difference"] < (1e-4 if dtype == "float32" else 0.1) < effect


@cases("dtype", ["float32", "bfloat16"])
def test_a_proof_alone_takes_the_dtype_of_the_recorded_logits_whatever_would_fit(
    cli, llama, on_tiny, monkeypatch, dtype
):
    monkeypatch.setattr(environment, "NATIVE_BF16", ())
    base = [*on_tiny(llama), "device.dtype=auto"]
    trained = cli(*on_tiny(llama), f"device.dtype={dtype}", *TINY_STEPS)
    monkeypatch.setattr(placement, "fit_device", None)  # nobody asks whether it fits: nothing is held
    record = cli(*base, "action=reload", "action.evaluate=false", f"adapter={trained.run_dir}").record()
    assert record["device"].startswith(f"device cpu, {dtype}: ")
    assert record["adapters"][0]["saved_difference"] is not None
