"""A base that does not fit: layers wait on disk, and the adapter on them answers as it does on the whole base."""

import json

import pytest
import torch
from cases import cases
from conftest import TINY_STEPS
from safetensors.torch import load_file

from peftrun.adapters import load, probes
from peftrun.artifacts.adapter_folder import resolve_adapters
from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.errors import DeviceError
from peftrun.models import base as base_models
from peftrun.models import device

SMALL = ["device=offload", "device.type=cpu", "device.dtype=float32", "device.max_memory={cpu: 60KB}"]


def based(folder, *overrides):
    spec = build_spec(
        compose.compose_run(["model=pretrained", f"model.name_or_path={folder}", "action=evaluate", *overrides]).cfg
    )
    return spec, base_models.load_base(spec.model, device.resolve_device(spec.device))


def test_part_of_the_base_is_on_disk_and_it_answers_the_same(llama):
    _, whole = based(llama, "device=cpu", "device.dtype=float32")
    _, split = based(llama, *SMALL)
    assert "disk" in split.model.hf_device_map.values()
    assert any(one.is_meta for one in split.model.parameters())
    one, other = (probes.compute_probe_logits(base.model, base.tokenizer) for base in (whole, split))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="device 0 is there")
def test_a_device_that_is_not_there_is_named(llama):
    with pytest.raises(DeviceError, match=r"there is no 0; type 'device.max_memory=\{cpu: 1GiB\}'"):
        based(llama, "device=offload", "++device.max_memory={0: 1GiB, cpu: 1GiB}")


def test_every_adapter_tensor_is_where_its_layer_computes(llama, trained):
    _, whole = based(llama, "device=cpu", "device.dtype=float32")
    _, split = based(llama, *SMALL)
    both = [load.load(base, resolve_adapters({"default": str(trained)}), None, False) for base in (whole, split)]
    assert all(not value.is_meta for key, value in both[1][0].named_parameters() if "lora_" in key)
    placed = load.describe_placement(both[1][0])["adapted_modules"]
    assert list(placed) == ["cpu float32"]
    one, other = (
        probes.compute_probe_logits(net, base.tokenizer) for (net, _), base in zip(both, (whole, split), strict=True)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert both[1][1][0].saved_difference < 1e-4


def test_two_adapters_switch_on_it(llama, trained):
    _, split = based(llama, *SMALL)
    net, proofs = load.load(split, resolve_adapters({"a": str(trained), "b": str(trained)}), "b", False)
    assert net.active_adapter == "b" and len(proofs) == 2


@pytest.mark.slow
@cases("action", ["reload", "evaluate", "generate", "merge"])
def test_actions_answer_as_on_the_whole_base(cli, llama, on_tiny, trained, action):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    more = {"generate": ["action.prompt=hi", "action.max_new_tokens=4"]}.get(action, [])
    found = {}
    for name, place in (("whole", ["device=cpu", "device.dtype=float32"]), ("split", SMALL)):
        run = cli(*given, *place, f"action={action}", f"adapter={trained}", *more)
        assert run.code == 0, run.err
        found[name] = run
    if action == "generate":
        texts = [json.loads((run.run_dir / "generations.jsonl").read_text())["answer"] for run in found.values()]
        assert texts[0] == texts[1]
    elif action == "merge":
        assert found["split"].record()["merge"]["max_logit_difference"] < 1e-3
    else:
        assert found["split"].record()["metrics"] == pytest.approx(found["whole"].record()["metrics"], rel=1e-4)
        assert "offloaded beyond cpu 60KB" in found["split"].record()["device"]


def test_adapters_are_made_on_it_as_on_the_whole_base(cli, llama, on_tiny, trained):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    merged = cli(*on_tiny(llama), "action=merge", f"adapter={trained}").run_dir / "merged"
    typed = {
        "extract": ["action=extract", f"action.finetuned_model={merged}", "lora.r=4"],
        "combine": ["action=combine", f"adapter={{a: {trained}, b: {trained}}}", "action.combination_type=svd"],
    }
    for action, own in typed.items():
        runs = [cli(*given, *place, *own) for place in (["device=cpu", "device.dtype=float32"], SMALL)]
        assert [run.code for run in runs] == [0, 0], runs[1].err
        one, other = (load_file(run.run_dir / "adapter" / "adapter_model.safetensors") for run in runs)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), action
        assert "offloaded beyond cpu 60KB" in runs[1].record()["device"]


def test_what_needs_the_weights_is_refused(cli, llama, on_tiny):
    given = [one for one in on_tiny(llama) if not one.startswith("device")]
    run = cli(*on_tiny(llama), *TINY_STEPS, "lora=dora")
    found = cli(*given, *SMALL, "action=evaluate", f"adapter={run.run_dir}")
    assert found.code == 1 and "use_dora" in found.err and "Traceback" not in found.err
    found = cli(*given, *SMALL, "action=train")
    assert found.code == 1 and "an offloaded base model is inference-only" in found.err
