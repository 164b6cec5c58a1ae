"""How a base attends while it is trained: by plain products where that is faster, and never otherwise than the user chose."""

import dataclasses

import pytest
import torch

from peftrun.composition import compose
from peftrun.composition.spec import build_spec
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.training import cpu_attention, fit

BF16 = device.Device("cpu", torch.bfloat16, "")


def spec(*overrides):
    return build_spec(compose.compose_run(overrides).cfg)


def wanted(*overrides, place=BF16):
    found = spec(*overrides)
    return cpu_attention.is_eager_faster(found.model, found.task, found.trainer, place)


def test_when():
    assert wanted()
    assert not wanted("task.max_length=1024")
    assert not wanted("model.attn_implementation=sdpa")
    assert not wanted("trainer.torch_compile=true")
    assert not wanted("trainer.padding_free=true")
    assert not wanted(place=dataclasses.replace(BF16, dtype=torch.float32))
    assert not wanted(place=dataclasses.replace(BF16, name="cuda"))


@pytest.fixture
def base(llama):
    return base_models.load_base(spec("model=pretrained", f"model.name_or_path={llama}").model, BF16).model


def test_the_same_answers_either_way(base):
    ids = torch.arange(3, 43).view(2, 20)
    fused = base(input_ids=ids).logits
    with cpu_attention.use_eager_attention(base, True):
        assert base.config._attn_implementation == "eager"
        plain = base(input_ids=ids).logits
    assert (fused - plain).abs().max() < 0.05 * fused.abs().max()
    assert torch.equal(base(input_ids=ids).logits, fused)


def test_it_ends_also_when_training_fails(base):
    with pytest.raises(RuntimeError), cpu_attention.use_eager_attention(base, True):
        raise RuntimeError
    assert base.config._attn_implementation == "sdpa"


def test_a_run_is_trained_so_and_measured_as_it_was_loaded(tmp_path, monkeypatch, llama, on_tiny):
    from peftrun.runs import execute

    monkeypatch.chdir(tmp_path)
    seen = []
    inner = fit.fit
    monkeypatch.setattr(
        fit,
        "fit",
        lambda net, *args, **more: (seen.append(net.config._attn_implementation), inner(net, *args, **more))[1],
    )
    short = ["trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.save_strategy=no", "device.dtype=bfloat16"]
    result = execute.execute_run(spec(*on_tiny(llama), *short), tmp_path / "run")
    assert seen == ["eager"]
    assert result.metrics["after"]["loss"] > 0
