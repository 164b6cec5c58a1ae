"""Part of what docs/gotchas.md says of PEFT, seen on the installed PEFT: if a version changes it, this fails and the page is mended."""

import pytest
import torch
from conftest import build_gpt2
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

SETTINGS = {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "lora_dropout": 0.1, "fan_in_fan_out": True}


@pytest.fixture
def adapted(gpt2):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(gpt2), LoraConfig(**SETTINGS))


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_the_file_is_safetensors(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "adapter_model.bin").exists()


def test_the_count_is_printed_not_returned(adapted, capsys):
    assert adapted.print_trainable_parameters() is None
    assert "trainable params" in capsys.readouterr().out


def test_active_adapters_is_a_property_and_set_adapter_switches(adapted):
    adapted.add_adapter("other", LoraConfig(**SETTINGS))
    assert adapted.active_adapters == ["default"]
    adapted.set_adapter("other")
    assert adapted.active_adapters == ["other"] and not hasattr(adapted, "set_active_adapters")


def test_saving_saves_every_adapter(adapted, tmp_path):
    adapted.add_adapter("other", LoraConfig(**SETTINGS))
    adapted.save_pretrained(tmp_path)
    assert weights(tmp_path) and weights(tmp_path / "other")


def test_loading_under_a_name_in_use_overwrites_without_a_word(adapted, tmp_path):
    torch.nn.init.ones_(adapted.base_model.model.transformer.h[0].attn.c_attn.lora_B["default"].weight)
    adapted.save_pretrained(tmp_path)
    layer = adapted.base_model.model.transformer.h[0].attn.c_attn.lora_B["default"].weight
    torch.nn.init.zeros_(layer)
    adapted.load_adapter(str(tmp_path), adapter_name="default")
    assert (layer == 1).all()


def test_saving_onto_an_adapter_overwrites_it(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    before = weights(tmp_path)
    torch.nn.init.ones_(adapted.base_model.model.transformer.h[0].attn.c_attn.lora_B["default"].weight)
    adapted.save_pretrained(tmp_path)
    assert any(not torch.equal(value, before[key]) for key, value in weights(tmp_path).items())


def test_another_base_of_the_same_shapes_is_taken_without_a_word(adapted, tmp_path, recwarn):
    adapted.save_pretrained(tmp_path / "adapter")
    other = AutoModelForCausalLM.from_pretrained(build_gpt2(tmp_path / "other", seed=4))
    recwarn.clear()
    PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert not [warning for warning in recwarn if "base" in str(warning.message)]


def test_a_reloaded_adapter_trains_nothing_unless_asked(adapted, gpt2, tmp_path):
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), tmp_path)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_typo_beside_a_target_that_matches_is_passed_over(gpt2):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(gpt2), LoraConfig(**SETTINGS | {"target_modules": ["c_attn", "c_atn"]})
    )
    assert model.get_nb_trainable_parameters()[0] > 0


def test_merging_in_memory_changes_the_base(adapted, gpt2):
    torch.nn.init.ones_(adapted.base_model.model.transformer.h[0].attn.c_attn.lora_B["default"].weight)
    merged = adapted.merge_and_unload()
    base = AutoModelForCausalLM.from_pretrained(gpt2)
    assert not torch.equal(merged.transformer.h[0].attn.c_attn.weight, base.transformer.h[0].attn.c_attn.weight)
