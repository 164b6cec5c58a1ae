"""Bases held in few bits: trained on, saved, reloaded as it was, merged into the full-precision base."""

import itertools
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS, build_llama
from transformers import AutoModelForCausalLM

from peftrun.adapters import attach, load, probes
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.config.schema.run import ModelSpec
from peftrun.errors import ModelError
from peftrun.models import base as base_models
from peftrun.models import device, quantization
from peftrun.models.device import Device

pytestmark = pytest.mark.slow

bitsandbytes = pytest.importorskip("bitsandbytes")
torchao = pytest.importorskip("torchao")
FORMATS = ["nf4", "fp4", "int8", "torchao_int8"]
EIGHT_BITS = [*FORMATS, "torchao_fp8"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny Llama whose layers are large enough for bitsandbytes' blocks of 64 numbers."""
    return build_llama(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, intermediate_size=128)


def based(folder, *overrides):
    given = ["model=pretrained", f"model.name_or_path={folder}", "device=cpu", "device.dtype=float32", *overrides]
    spec = build_spec(compose.compose_run(given).cfg)
    return spec, base_models.load_base(spec.model, device.resolve_device(spec.device))


def numbers(weight):
    """What holds the weight itself: torchao keeps it inside a tensor of its own kind."""
    return [weight.qdata] if hasattr(weight, "qdata") else [weight]


@cases("held", EIGHT_BITS)
def test_the_base_is_smaller_and_near_the_full_one(wide, held):
    _, full = based(wide)
    _, few = based(wide, f"model.quantization={held}")
    weights = [one.model.model.layers[0].mlp.down_proj.weight for one in (full, few)]
    bytes_of = [sum(part.numel() * part.element_size() for part in numbers(one)) for one in weights]
    assert bytes_of[1] * (8 if "4" in held else 4) == bytes_of[0]
    apart = probes.compare_logits(*(probes.compute_probe_logits(one.model, one.tokenizer) for one in (full, few)))
    assert 0 < apart["kl_divergence"] < 0.5


@pytest.mark.parametrize(
    ("held", "method"),
    [
        *itertools.product(FORMATS, ["lora", "eva", "ia3"]),
        ("nf4", "dora"),
        ("fp4", "rslora"),
        ("nf4", "vera"),
        ("torchao_fp8", "lora"),
    ],
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
    counted = run.record()["parameters"] - run.record()["trainable_parameters"]
    assert counted == whole.num_parameters() or method == "vera"  # whose frozen projections count too


def test_loftq_starts_nearer_to_the_full_base_than_zero_does(wide):
    _, full = based(wide)
    spec, few = based(wide, "model.quantization=nf4", "lora=loftq", "lora.r=8")
    exact = full.model.model.layers[0].mlp.down_proj.weight
    layer = attach.attach_adapter(few, spec.lora, 0).base_model.model.model.layers[0].mlp.down_proj
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
    probes.compute_probe_logits(base.model, base.tokenizer)
    assert torch.equal(bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), before)


def test_an_adapter_of_the_full_base_loads_on_the_rounded_one(cli, wide, on_tiny):
    run = cli(*on_tiny(wide), *TINY_STEPS)
    found = cli(*on_tiny(wide), "action=reload", f"adapter={run.run_dir}", "model.quantization=nf4")
    assert found.code == 0, found.err
    proof = found.record()["adapters"][0]
    assert proof["base_checked"] and proof["saved_difference"] is None  # its kept answers are the full base's


@cases(
    "overrides, said",
    [
        (["model.quantization=nf4", "lora=none"], "quantized weights cannot be trained"),
        (["model.quantization=int8", "lora=dora"], "DoRA"),
        (["lora=loftq"], "model.quantization=nf4"),
        (["model.quantization=nf4", "lora=pissa"], "which cannot be done in a quantized model"),
        (["model.quantization=int7"], "model.quantization=int7"),
    ],
)
def test_what_cannot_be_is_refused(cli, wide, on_tiny, overrides, said):
    found = cli(*on_tiny(wide), *overrides)
    assert found.code == 1 and said in found.err and "Traceback" not in found.err


def test_loading_a_quantized_base_twice_gives_the_same_weights(wide):
    one, other = (
        probes.compute_probe_logits(base.model, base.tokenizer)
        for _, base in (based(wide, "model.quantization=nf4") for _ in range(2))
    )
    assert torch.equal(one, other)


def test_several_adapters_stand_on_one_rounded_base(cli, wide, on_tiny):
    runs = [cli(*on_tiny(wide), *TINY_STEPS, "model.quantization=nf4", f"seed={seed}") for seed in (1, 2)]
    spec, base = based(wide, "model.quantization=nf4")
    net, proofs = load.load(base, resolve_adapters({"a": str(runs[0].run_dir), "b": str(runs[1].run_dir)}), "b", False)
    assert net.active_adapter == "b" and all(proof.saved_difference < 1e-3 for proof in proofs)
    assert spec.model.quantization == "nf4"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory, wide):
    """A model folder whose files hold 4-bit weights."""
    folder = tmp_path_factory.mktemp("models") / "rounded"
    _, base = based(wide, "model.quantization=nf4")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    assert quantization.get_stored_quantization(folder) == "bitsandbytes"
    return folder


def test_files_that_hold_few_bits_are_a_base_as_they_are(cli, wide, rounded, on_tiny):
    run = cli(*on_tiny(rounded), *TINY_STEPS)
    assert run.code == 0, run.err
    assert "its files hold bitsandbytes weights" in run.err and run.record()["base"]["quantization"] == "bitsandbytes"
    metrics = run.record()["metrics"]
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    twin = cli(*on_tiny(wide), *TINY_STEPS, "model.quantization=nf4").record()["metrics"]
    assert metrics["after"]["loss"] == pytest.approx(twin["after"]["loss"], rel=1e-3)
    again = cli(*on_tiny(rounded), "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0 and again.record()["adapters"][0]["saved_difference"] < 1e-3
    merged = cli(*on_tiny(rounded), "action=merge", f"adapter={run.run_dir}")
    assert merged.code == 1 and "merge into the full-precision model it was made from" in merged.err


@cases(
    "overrides, said",
    [
        (["model.quantization=int8"], "hold bitsandbytes weights already; type model.quantization=null"),
        (["lora=none"], "lora=none: bitsandbytes weights cannot be trained"),
        (["lora=pissa"], "which bitsandbytes weights forbid"),
    ],
)
def test_they_can_no_more_than_such_weights_can(cli, rounded, on_tiny, overrides, said):
    found = cli(*on_tiny(rounded), *overrides)
    assert found.code == 1 and said in found.err and "Traceback" not in found.err


@pytest.mark.parametrize(("method", "packages"), [("gptq", "optimum gptqmodel"), ("awq", "gptqmodel")])
def test_what_computes_with_them_is_named(cli, wide, on_tiny, tmp_path, method, packages):
    folder = tmp_path / method
    shutil.copytree(wide, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(settings))
    missing = [one for one in packages.split() if find_spec(one) is None]
    if not missing:
        pytest.skip(f"{packages} are installed here")
    found = cli(*on_tiny(folder), *TINY_STEPS)
    assert found.code == 1 and f"type `pip install {' '.join(missing)}`" in found.err and "Traceback" not in found.err


@cases(
    "stored, place, said",
    [
        ("awq", Device("cuda", torch.bfloat16, ""), r"type device\.dtype=float16"),
        ("awq", Device("cpu", torch.bfloat16, ""), r"type device\.dtype=float32"),
        ("hqq", Device("cpu", torch.float32, ""), r"only cuda and xpu compute with; type device=cuda"),
    ],
)
def test_what_a_device_computes_of_stored_weights(monkeypatch, tmp_path, stored, place, said):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": stored}}))
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    with pytest.raises(ModelError, match=said):
        quantization.check_quantization(
            tmp_path, ModelSpec("some/model", None, None, None, None, False), place, place.dtype
        )


@cases(
    "held, place, said",
    [
        ("torchao_int4", Device("cuda", torch.float32, ""), r"type device\.dtype=bfloat16"),
        ("torchao_int4", Device("mps", torch.float32, ""), r"not on mps; type model\.quantization=nf4"),
        ("torchao_fp8", Device("mps", torch.float32, ""), r"not on mps"),
    ],
)
def test_what_a_device_quantizes(wide, held, place, said):
    spec = ModelSpec(str(wide), None, None, held, None, False)
    with pytest.raises(ModelError, match=said):
        quantization.check_quantization(wide, spec, place, place.dtype)
