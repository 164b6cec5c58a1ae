"""The streamed merge is PEFT's own merge in float32, rounded once: for every method, family of models and dtype."""

import dataclasses
import itertools

import peft
import pytest
import torch
from cases import cases
from faults import check_failed
from foreign_adapters import LLAMA, base_of, logits, made
from merge_cases import FAMILIES, random_settings, reference, stored_base, streamed, tensors_of, trained_adapter

from peftrun.adapters import load
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition.compose import compose_run
from peftrun.composition.spec import build_spec
from peftrun.io import safetensors_header

METHODS = ["lora", "rslora", "dora", "pissa", "olora"]  # every option's merge on a Llama: test_methods
OURS = ("method", "calibration_rows", "lora_fa")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What is left between the adapter on its base and the merged model: the last bit of a float32, or one rounding.
ALLOWED = {"float32": 1e-3, "bfloat16": 3.0, "float16": 0.3}


def settings_of(method: str) -> dict:
    lora = dataclasses.asdict(build_spec(compose_run([f"lora={method}"]).cfg).lora)
    return {key: value for key, value in lora.items() if key not in OURS and value is not None}


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("float32", "float16"))]
)
@cases("family, method", itertools.product(FAMILIES, METHODS), every=3)
def test_every_method_family_and_dtype(tmp_path, family, method, dtype):
    if (family, method) == ("gpt2", "olora"):
        return  # PEFT cannot start OLoRA on Conv1D: refused, see test_bad_input
    error = merge_error(FAMILIES[family], settings_of(method), DTYPES[dtype], tmp_path)
    assert error < ALLOWED[dtype]


@cases("seed", range(20), every=5)  # 0, 5, 10, 15: each family, and each dtype
def test_random_adapters(tmp_path, seed):
    family = FAMILIES[list(FAMILIES)[seed % len(FAMILIES)]]
    settings = random_settings(family, seed)
    dtype = list(DTYPES)[seed % 3]
    assert merge_error(family, settings, DTYPES[dtype], tmp_path) < ALLOWED[dtype], settings


# Methods other than LoRA: settings for the tiny Llama.
OTHERS = [
    ("IA3Config", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ("LoHaConfig", {}), ("LoKrConfig", {}), ("BOFTConfig", {}), ("VeraConfig", {}), ("HRAConfig", {}), ("DeloraConfig", {}),
    ("OFTConfig", {"oft_block_size": 8, "r": 0}),
    ("FourierFTConfig", {"n_frequency": 50}),
    ("VBLoRAConfig", {"vector_length": 16, "num_vectors": 20}),
    ("VBLoRAConfig", {"vector_length": 16, "num_vectors": 20, "save_only_topk_weights": True}),
    ("RandLoraConfig", {}),
    ("TrainableTokensConfig", {"target_modules": ["embed_tokens"], "token_indices": [3, 7]}),
    ("LoraConfig", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
]  # fmt: skip


@cases("kind, settings", OTHERS)
def test_other_methods_of_peft_stream_too(tmp_path, kind, settings):
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
    error = merge_error(FAMILIES["llama"], settings, torch.float32, tmp_path, getattr(peft, kind))
    assert error < ALLOWED["float32"]


# Rotations that PEFT makes smaller as it computes, and weights that it computes from logits that are in no file.
WRITTEN_OVER = [
    peft.OFTConfig(**LLAMA, oft_block_size=8, r=0, coft=True, eps=0.5),
    peft.VBLoRAConfig(**LLAMA, vector_length=16, num_vectors=20, save_only_topk_weights=True),
]


@cases("config", WRITTEN_OVER)
def test_tensors_that_peft_writes_over_are_compared_before_it_does(cli, tmp_path, llama, on_tiny, config):
    answers = made(llama, tmp_path / "a", config)
    net, _ = load.load(base_of(llama), resolve_adapters({"default": str(tmp_path / "a")}), None, False)
    torch.testing.assert_close(logits(net), answers, rtol=0, atol=1e-4)
    for action in ("reload", "merge"):
        outcome = cli(*on_tiny(llama), f"action={action}", f"adapter={tmp_path / 'a'}")
        assert outcome.code == 0, outcome.err
    written = FAMILIES["llama"].auto.from_pretrained(outcome.run_dir / "merged")
    torch.testing.assert_close(logits(written), answers, rtol=0, atol=1e-4)


NORMS = {"task_type": "CAUSAL_LM", "target_modules": ["input_layernorm"]}
WHOLE = [
    (peft.AdaLoraConfig(**LLAMA, total_step=10), "from a random state"),
    (peft.LNTuningConfig(**NORMS), "is a LNTuningLayer"),
    (peft.LNTuningConfig(**NORMS, modules_to_save=["lm_head"]), "is a LNTuningLayer"),
    (peft.RandLoraConfig(**LLAMA, save_projection=False), "PEFT draws them again"),
    (peft.LoraConfig(**LLAMA, monteclora_config=peft.MontecloraConfig()), "PEFT makes this adapter's samplers"),
    (peft.LoraConfig(**LLAMA, init_lora_weights="pissa"), "takes part of the base's weights away"),
    (
        peft.LoraConfig(**LLAMA, kasa_config=peft.KasaConfig()),
        "takes the smallest directions out of the base's weights",
    ),
]


@cases("config, why", WHOLE, ids=lambda case: case[1])
def test_what_cannot_stream_is_merged_in_memory_and_that_is_said(cli, tmp_path, llama, on_tiny, config, why):
    answers = made(llama, tmp_path / "a", config)
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={tmp_path / 'a'}")
    assert merged.code == 0, merged.err
    (line,) = (one for one in merged.err.splitlines() if "this merge needs the whole model in memory: " in one)
    assert why in line
    figures = merged.record()["merge"]
    assert figures["streamed"] is False and figures["max_logit_difference"] < 1e-4
    written = FAMILIES["llama"].auto.from_pretrained(merged.run_dir / "merged")
    torch.testing.assert_close(logits(written), answers, rtol=0, atol=1e-4)


def merging(base, adapter) -> list[str]:
    task = ["task=translation"] if adapter.parent.name == "t5" else []
    on_base = ["model=pretrained", f"model.name_or_path={base}", "device=cpu", "device.dtype=float32", *task]
    return [*on_base, "action=merge", "action.num_eval_rows=0", f"adapter={adapter}"]


NOT_MERGED = [
    ("llama", {"target_modules": ["q_proj"], "lora_bias": True}, "has no bias"),
    ("t5", {"target_modules": ["q"], "modules_to_save": ["shared"]}, "encoder.embed_tokens.weight and shared.weight are one"),
    ("t5", {"target_modules": ["shared"], "modules_to_save": ["lm_head"]}, "it changes only one of them"),
]  # fmt: skip


@cases("name, settings, why", NOT_MERGED)
def test_what_peft_cannot_merge_is_refused(cli, tmp_path, name, settings, why):
    family = FAMILIES[name]
    base = family.build(tmp_path / "base")
    adapter = trained_adapter(family, base, tmp_path / name, settings)
    check_failed(cli, tmp_path, merging(base, adapter), ["PEFT cannot merge this LORA adapter", why, "keep it"])


TIED = [
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [7]}}),
    ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [5, 6], "lm_head": [7]}}),
    ("t5", {"target_modules": ["q", "lm_head"]}),
]


@cases("name, settings", TIED)
def test_an_adapted_embedding_does_not_change_the_weights_tied_to_it(cli, tmp_path, name, settings):
    """PEFT's own `merge_and_unload` merges in place, into both."""
    family = FAMILIES[name]
    base = family.build(tmp_path / "base")
    adapter = trained_adapter(family, base, tmp_path / name, settings | {"lora_alpha": 64})
    net = peft.PeftModel.from_pretrained(family.auto.from_pretrained(base), str(adapter))
    right = family.logits(net)
    assert (family.logits(net.merge_and_unload()) - right).abs().max() > 0.1
    merged = cli(*merging(base, adapter))
    assert merged.code == 0, merged.err
    written = family.auto.from_pretrained(merged.run_dir / "merged")
    torch.testing.assert_close(family.logits(written), right, rtol=0, atol=1e-4)
    assert written.get_output_embeddings().weight is not written.get_input_embeddings().weight


def test_trained_tokens_that_are_tied_stay_tied(cli, tmp_path, llama):
    settings = {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]}
    merged = cli(*merging(llama, trained_adapter(FAMILIES["llama"], llama, tmp_path / "llama", settings)))
    assert "lm_head.weight" not in tensors_of(merged.run_dir / "merged")


def merge_error(family, settings: dict, dtype: torch.dtype, folder, kind=peft.LoraConfig) -> float:
    """Max |Δlogit| between adapter on base and the merged files, which must hold PEFT's merge to the last bit."""
    base = stored_base(family, folder, dtype, shard="40KB")
    adapter = trained_adapter(family, base, folder, settings, kind)
    before = tensors_of(base)
    expected, adapted = reference(family, base, adapter)
    found, merged = streamed(family, base, adapter, folder / "merged")
    assert expected.keys() == found.keys()
    assert {value.dtype for value in before.values()} == {
        value.dtype for value in tensors_of(folder / "merged").values()
    }
    differing = [key for key, value in expected.items() if not torch.equal(value.to(found[key].dtype), found[key])]
    assert not differing, differing
    assert any(not torch.equal(before[key], value) for key, value in found.items() if key in before)
    assert (
        len(safetensors_header.list_weight_files(folder / "merged"))
        == len(safetensors_header.list_weight_files(base))
        > 1
    )
    return (adapted - merged).abs().max().item()
