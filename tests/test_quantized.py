"""Bases held in few bits: trained on, saved, reloaded as it was, merged into the full-precision base."""

import itertools

import pytest
import torch
from conftest import TINY_STEPS, build_llama
from transformers import AutoModelForCausalLM

from peftrun import composition, config, device, model
from peftrun.adapter import attach, load, probe

bitsandbytes = pytest.importorskip("bitsandbytes")
FORMATS = ["nf4", "fp4", "int8"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny Llama whose layers are large enough for bitsandbytes' blocks of 64 numbers."""
    return build_llama(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, intermediate_size=128)


def based(folder, *overrides):
    given = ["model=pretrained", f"model.name_or_path={folder}", "device=cpu", "device.dtype=float32", *overrides]
    spec = config.build(composition.compose_run(given)[0])
    return spec, model.load_base(spec.model, device.resolve(spec.device))


@pytest.mark.parametrize("held", FORMATS)
def test_the_base_is_smaller_and_near_the_full_one(wide, held):
    _, full = based(wide)
    _, few = based(wide, f"model.quantization={held}")
    weights = [one.model.model.layers[0].mlp.down_proj.weight for one in (full, few)]
    bytes_of = [one.numel() * one.element_size() for one in weights]
    assert bytes_of[1] * (4 if held == "int8" else 8) == bytes_of[0]
    apart = probe.compare(*(probe.logits(one.model, one.tokenizer) for one in (full, few)))
    assert 0 < apart["kl_divergence"] < 0.5


@pytest.mark.parametrize(
    ("held", "method"),
    [*itertools.product(FORMATS, ["lora", "eva", "ia3"]), ("nf4", "dora"), ("fp4", "rslora"), ("nf4", "vera")],
)
def test_qlora_is_trained_saved_reloaded_as_it_was_and_merged_in_full_precision(cli, wide, on_tiny, held, method):
    run = cli(*on_tiny(wide), *TINY_STEPS, f"model.quantization={held}", f"lora={method}")
    assert run.code == 0, run.err
    metrics = run.record()["metrics"]
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    again = cli(*on_tiny(wide), "action=reload", f"adapter={run.run_dir}", f"model.quantization={held}")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] < 1e-3
    assert again.record()["metrics"]["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-3)
    merged = cli(*on_tiny(wide), "action=merge", f"adapter={run.run_dir}", f"model.quantization={held}")
    assert merged.code == 0, merged.err
    assert "full-precision base" in merged.err and merged.record()["merge"]["max_logit_difference"] < 1e-3
    whole = AutoModelForCausalLM.from_pretrained(merged.run_dir / "merged")
    assert whole.model.layers[0].mlp.down_proj.weight.dtype == torch.float32


def test_loftq_starts_nearer_to_the_full_base_than_zero_does(wide):
    _, full = based(wide)
    spec, few = based(wide, "model.quantization=nf4", "lora=loftq", "lora.r=8")
    exact = full.model.model.layers[0].mlp.down_proj.weight
    layer = attach.attach(few, spec.lora, 0).base_model.model.model.layers[0].mlp.down_proj
    rounded = bitsandbytes.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    left = (
        torch.linalg.svdvals(exact - rounded)[8:].square().sum().sqrt()
    )  # the least that rank 8 can leave (Eckart & Young 1936)
    started = rounded + layer.get_delta_weight("default")
    assert torch.linalg.vector_norm(exact - started).item() == pytest.approx(left.item(), rel=1e-4)
    assert left < 0.9 * torch.linalg.vector_norm(exact - rounded)


def test_loftq_reloads_as_it_was(cli, wide, on_tiny):
    run = cli(*on_tiny(wide), *TINY_STEPS, "model.quantization=nf4", "lora=loftq")
    assert run.code == 0, run.err
    again = cli(*on_tiny(wide), "action=reload", f"adapter={run.run_dir}", "model.quantization=nf4")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] < 1e-3


def test_weights_are_readable_after_an_evaluation(wide):
    """bitsandbytes repacks 4-bit weights at the first evaluation on some CPUs; a merge would read garbage."""
    _, base = based(wide, "model.quantization=nf4")
    layer = base.model.model.layers[0].mlp.down_proj
    before = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).clone()
    probe.logits(base.model, base.tokenizer)
    assert torch.equal(bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), before)


def test_an_adapter_of_the_full_base_loads_on_the_rounded_one(cli, wide, on_tiny):
    run = cli(*on_tiny(wide), *TINY_STEPS)
    found = cli(*on_tiny(wide), "action=reload", f"adapter={run.run_dir}", "model.quantization=nf4")
    assert found.code == 0, found.err
    proof = found.record()["adapters"][0]
    assert proof["base_checked"] and proof["saved_difference"] is None  # its kept answers are the full base's


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.quantization=nf4", "lora=none"], "rounded weights cannot be trained"),
        (["model.quantization=int8", "lora=dora"], "DoRA"),
        (["lora=loftq"], "model.quantization=nf4"),
        (["model.quantization=nf4", "lora=pissa"], "which rounding forbids"),
        (["model.quantization=int7"], "model.quantization=int7"),
        (["model.quantization=torchao_int8"], "torchao"),
    ],
)
def test_what_cannot_be_is_refused(cli, wide, on_tiny, overrides, said):
    found = cli(*on_tiny(wide), *overrides)
    if found.code == 0:
        pytest.skip("torchao is installed here")
    assert found.code == 1 and said in found.err and "Traceback" not in found.err


def test_loading_a_quantized_base_twice_gives_the_same_weights(wide):
    one, other = (
        probe.logits(base.model, base.tokenizer)
        for _, base in (based(wide, "model.quantization=nf4") for _ in range(2))
    )
    assert torch.equal(one, other)


def test_several_adapters_stand_on_one_rounded_base(cli, wide, on_tiny):
    runs = [cli(*on_tiny(wide), *TINY_STEPS, "model.quantization=nf4", f"seed={seed}") for seed in (1, 2)]
    spec, base = based(wide, "model.quantization=nf4")
    net, proofs = load.load(base, {"a": str(runs[0].run_dir), "b": str(runs[1].run_dir)}, "b", False)
    assert net.active_adapter == "b" and all(proof.saved_difference < 1e-3 for proof in proofs)
    assert spec.model.quantization == "nf4"
