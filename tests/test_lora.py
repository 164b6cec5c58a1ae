"""LoRA's own knobs, each by what it leaves in the saved adapter. Every method as a whole: test_methods."""

import json

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from safetensors.torch import load_file

from peftrun.adapters import attach, load, probes
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition.spec import build_spec
from peftrun.errors import ConfigError
from peftrun.models.base import load_base
from peftrun.models.device import Device


def spec_of(llama, *overrides):
    from peftrun.composition.compose import compose_run

    return build_spec(compose_run(["model=pretrained", f"model.name_or_path={llama}", *overrides]).cfg)


def attached(llama, *overrides):
    spec = spec_of(llama, *overrides)
    base = load_base(spec.model, Device("cpu", torch.float32, ""))
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    plain = probes.compute_probe_logits(base.model, base.tokenizer)
    net = attach.attach_adapter(base, spec.lora, seed=0)
    return net, before, plain, base


@cases("option", ["lora", "rslora", "dora"])
def test_disabled_is_the_base(llama, option):
    net, _, plain, base = attached(llama, f"lora={option}")
    for name, value in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    with net.disable_adapter():
        assert torch.equal(probes.compute_probe_logits(net, base.tokenizer), plain)
    assert not torch.equal(probes.compute_probe_logits(net, base.tokenizer), plain)


@cases("option", ["pissa", "olora", "corda", "lora_ga"])
def test_what_changed_the_base_is_saved_as_plain_lora_of_twice_the_rank(cli, llama, on_tiny, option):
    folder = cli(*on_tiny(llama), *TINY_STEPS, f"lora={option}").run_dir / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 64, True)


KNOBS = {
    "r": (["lora.r=3"], lambda config, tensors: all(t.shape[0] == 3 for k, t in tensors.items() if "lora_A" in k)),
    "target_modules": (["lora.target_modules=[q_proj]"], lambda config, tensors: all("q_proj" in key for key in tensors)),
    "regex": ([r"lora.target_modules='.*layers\.1\..*q_proj'"], lambda config, tensors: {k.split(".")[4] for k in tensors} == {"1"}),
    "exclude_modules": (["lora.exclude_modules=[q_proj]"], lambda config, tensors: not any("q_proj" in key for key in tensors)),
    "layers_to_transform": (["lora.target_modules=[q_proj]", "lora.layers_to_transform=[0]"], lambda c, tensors: len(tensors) == 2),
    "one layer": (["lora.target_modules=[q_proj]", "lora.layers_to_transform=0"], lambda c, tensors: len(tensors) == 2 and c["layers_to_transform"] == 0),
    "modules_to_save": (["lora.modules_to_save=[norm]"], lambda config, tensors: any(key.endswith("norm.weight") for key in tensors)),
    "bias": (["lora.bias=lora_only"], lambda config, tensors: config["bias"] == "lora_only"),
    "rank_pattern": (["lora.rank_pattern={q_proj: 5}"], lambda c, t: {v.shape[0] for k, v in t.items() if "q_proj.lora_A" in k} == {5}),
    "alpha_pattern": (["lora.alpha_pattern={q_proj: 5}"], lambda config, tensors: config["alpha_pattern"] == {"q_proj": 5}),
    "lora_dropout": (["lora.lora_dropout=0.3"], lambda config, tensors: config["lora_dropout"] == 0.3),
    "gaussian": (["lora.init_lora_weights=gaussian"], lambda config, tensors: config["init_lora_weights"] == "gaussian"),
    "lora_bias": (["lora.lora_bias=true"], lambda config, tensors: any(key.endswith("lora_B.bias") for key in tensors)),
    "tokens": (["lora.trainable_token_indices=[5,6]"], lambda c, t: {v.shape for k, v in t.items() if "token" in k} == {(2, 32)}),
    "orthogonal": (["lora.init_lora_weights=orthogonal"], lambda config, tensors: config["init_lora_weights"] == "orthogonal"),
    "random B": (["lora.init_lora_weights=false"], lambda c, t: all(v.abs().sum() > 0 for k, v in t.items() if "lora_B" in k)),
}  # fmt: skip


@cases("knob", KNOBS, every=2)
def test_each_lora_knob_shows_in_what_is_saved(cli, llama, on_tiny, knob):
    overrides, shows = KNOBS[knob]
    outcome = cli(*on_tiny(llama), "action=save", *overrides)
    assert outcome.code == 0, outcome.err
    folder = outcome.run_dir / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert shows(config, load_file(folder / "adapter_model.safetensors"))


@cases(
    "override",
    [
        "lora.exclude_modules=[nosuch]",
        "lora.rank_pattern={nosuch: 4}",
        "lora.alpha_pattern={nosuch: 4}",
        "lora.layers_to_transform=[2]",
        "lora.layers_to_transform=2",
    ],
)
def test_whatever_names_a_module_must_name_one(cli, llama, on_tiny, override):
    targets = ["lora.target_modules=[q_proj]"] if "layers" in override else []
    outcome = cli(*on_tiny(llama), "action=save", override, *targets)
    assert outcome.code == 1 and outcome.run_dir is None
    assert override.split("=")[0] in outcome.err and ("modules: " in outcome.err or "layers are 0 to 1" in outcome.err)


@cases(
    "overrides, told",
    [
        (
            ["lora=osf", "lora.effective_rank=1000"],
            "with lora.effective_rank=1000; choose",
        ),
        (
            ["lora=cartridge", "lora.num_virtual_tokens=4", "lora.num_frozen_tokens=4"],
            "lora.num_frozen_tokens=4; choose",
        ),
        (["lora=glora", "lora.config_A_B=none", "lora.config_C=none", "lora.config_D_E=none"], "lora.config_C=none"),
    ],
)
def test_a_method_that_trains_nothing_is_refused(llama, overrides, told):
    with pytest.raises(ConfigError, match=r"^lora.method=\w+: trains 0 parameters of this model") as refused:
        attached(llama, *overrides)
    assert told in str(refused.value)


@cases("size, fits", [(24, 16), (100, 32)])
def test_a_block_size_that_does_not_divide_the_inputs_is_refused(llama, size, fits):
    """PEFT takes another one in its place, and saves the one that was asked for."""
    with pytest.raises(ConfigError, match=f"^lora.oft_block_size={size}: .*type lora.oft_block_size={fits}$"):
        attached(llama, "lora=oft", f"lora.oft_block_size={size}")


@cases("option, setting", [("miss", "r=7"), ("peanut", "depth=1"), ("velora", "velora_config.num_groups=7")])
def test_sizes_that_divide_nothing_are_saved_and_loaded_as_they_are(llama, tmp_path, option, setting):
    net, _, _, base = attached(llama, f"lora={option}", f"lora.{setting}")
    for parameter in net.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1 if parameter.requires_grad else 0
    net.save_pretrained(str(tmp_path), save_embedding_layers=False)
    fresh = load_base(base.spec, Device("cpu", torch.float32, ""))
    again, (proof,) = load.load(fresh, resolve_adapters({"default": str(tmp_path)}), None, False)
    assert proof.effect["max_logit_difference"] > 1e-3 and proof.modules == 14
    assert torch.equal(
        probes.compute_probe_logits(again, base.tokenizer), probes.compute_probe_logits(net.eval(), base.tokenizer)
    )


@pytest.mark.slow
@cases("method", ["pissa", "olora"])
def test_what_is_trained_in_full_survives_the_conversion_to_plain_lora(cli, on_tiny, llama, method):
    """PEFT's own conversion saves the low-rank factors alone."""
    run = cli(*on_tiny(llama), *TINY_STEPS, f"lora={method}", "lora.modules_to_save=[norm]")
    assert run.code == 0, run.err
    again = cli(*on_tiny(llama), "action=reload", f"adapter={run.run_dir}")
    assert again.code == 0, again.err
    assert again.record()["adapters"][0]["saved_difference"] < 1e-4
    assert again.record()["metrics"]["loss"] == pytest.approx(run.record()["metrics"]["after"]["loss"], abs=1e-4)
