"""Each row of docs/gotchas.md names the test that shows it, and that test is there; those of PEFT's own doings that no other file shows are here."""

import ast
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as hf_logging

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "gotchas.md"
CLASSIC = {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "lora_dropout": 0.1, "fan_in_fan_out": True}
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


@pytest.fixture
def adapted(gpt2):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(gpt2), LoraConfig(**CLASSIC))


def base(gpt2):
    return AutoModelForCausalLM.from_pretrained(gpt2)


def test_every_row_names_tests_that_are_there():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| often read |" not in line]
    assert len(rows) > 25
    for row in rows:
        named = NAMED.findall(row)
        assert named or row.endswith("| the same |"), row
        for file, name in named:
            tree = ast.parse((TESTS / file).read_text())
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (file, name)


def test_the_classic_adapter_has_294912_parameters_and_weighs_1182680_bytes(tmp_path):
    net = get_peft_model(GPT2LMHeadModel(GPT2Config()), LoraConfig(**CLASSIC))
    trained, every = net.get_nb_trainable_parameters()
    assert trained == 12 * 8 * (768 + 2304) == 294_912 and f"{trained / every:.4%}" == "0.2364%"
    net.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size == 1_182_680
    assert round((every - trained) * 4 / size) == 421


def test_a_pickle_is_written_and_read_on_request(adapted, gpt2, tmp_path):
    adapted.save_pretrained(tmp_path, safe_serialization=False)
    assert [path.name for path in tmp_path.glob("adapter_model.*")] == ["adapter_model.bin"]
    assert PeftModel.from_pretrained(base(gpt2), tmp_path).active_adapters == ["default"]


def test_selected_adapters_alone_are_saved(adapted, tmp_path):
    adapted.add_adapter("other", LoraConfig(**CLASSIC))
    adapted.save_pretrained(tmp_path, selected_adapters=["other"])
    assert [path.parent.name for path in tmp_path.rglob("adapter_model.safetensors")] == ["other"]


def test_a_slash_in_a_name_makes_nested_folders(gpt2, tmp_path):
    net = get_peft_model(base(gpt2), LoraConfig(**CLASSIC))
    net.add_adapter("a/b", LoraConfig(**CLASSIC))
    net.save_pretrained(tmp_path)
    assert (tmp_path / "a" / "b" / "adapter_model.safetensors").is_file()


def test_the_path_of_the_base_is_written_down(adapted, gpt2, tmp_path):
    adapted.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(gpt2)


def test_missing_tensors_warn_and_unexpected_ones_do_not(adapted, gpt2, tmp_path, recwarn):
    adapted.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name.replace("c_attn", "c_atn"): torch.ones(2)}, file, metadata={"format": "pt"})
    recwarn.clear()
    PeftModel.from_pretrained(base(gpt2), tmp_path)
    assert not [one for one in recwarn if "c_atn" in str(one.message) or "unexpected" in str(one.message).lower()]
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(base(gpt2), tmp_path)


def test_torch_dtype_is_deprecated(gpt2):
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_warning()
    hf_logging.warning_once.cache_clear()  # it may have been told in another test
    try:
        AutoModelForCausalLM.from_pretrained(gpt2, torch_dtype=torch.float32)
    finally:
        logger.removeHandler(handler)
        hf_logging.set_verbosity(verbosity)
    assert [line for line in told if "torch_dtype" in line and "deprecated" in line]


def test_a_mixed_batch_is_refused_while_training(adapted):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="training mode"):
        adapted.train()(input_ids=ids, adapter_names=["default", "__base__"])


def test_c_attn_is_a_conv1d(gpt2):
    layer = base(gpt2).transformer.h[0].attn.c_attn
    assert type(layer).__name__ == "Conv1D" and layer.weight.shape == (32, 96)  # inputs first
