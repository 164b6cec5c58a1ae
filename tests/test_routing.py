"""Rows of several plain adapters in one pass: what PEFT's own routing computes, with a number of products that does not grow with adapters."""

import math

import pytest
import torch
from cases import cases
from merge_cases import FAMILIES
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from peftrun.adapters import mixed_batch
from peftrun.adapters.row_routing import AdapterRouter

EVERY = {"target_modules": "all-linear"}
SETS = {
    "alike": [{"r": 2, **EVERY}] * 3,
    "ranks and places": [
        {"r": 2, **EVERY, "lora_alpha": 64, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"o_proj": 3}},
        {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"r": 1, "target_modules": ["v_proj"], "lora_dropout": 0.5},
    ],
    "wider than the base": [{"r": 24, **EVERY}] * 3,
    "an embedding": [{"r": 2, **EVERY}, {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}, {"r": 2, **EVERY}],
    "a bias": [{"r": 2, **EVERY}, {"r": 2, **EVERY, "lora_bias": True}, {"r": 2, **EVERY}],
}
ROWS = ["b", "base", "a", "c", "a", "b"]


aten = torch.ops.aten
PRODUCTS = (aten.linear, aten.mm, aten.addmm, aten.matmul, aten.bmm)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


def several(llama, settings, dtype=torch.float32):
    """The tiny model with one adapter of each setting, a, b, c…, none of which does nothing."""
    net = FAMILIES["llama"].auto.from_pretrained(llama, dtype=dtype)
    torch.manual_seed(0)
    for place, (name, own) in enumerate(zip("abcdefgh", settings, strict=False)):
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **own)
        net = net.add_adapter(name, config) or net if place else get_peft_model(net, config, adapter_name=name)
    return net.eval()


@torch.inference_mode()
def steps(net, given):
    """Logits of a prompt of seven tokens for each row, and of a token after it."""
    ids, cache = torch.arange(len(given) * 7).view(-1, 7) + 5, DynamicCache()
    return [net(input_ids=part, past_key_values=cache).logits for part in (ids, ids[:, :1])]


def by_peft(net, names):
    routed = [mixed_batch.PEFT_BASE_NAME if name == "base" else name for name in names]
    with net.base_model._enable_peft_forward_hooks(adapter_names=routed):
        return steps(net, names)


@cases("case", SETS)
def test_logits_are_those_of_pefts_routing_and_of_each_row_alone(llama, case):
    net = several(llama, SETS[case])
    router = AdapterRouter(net)
    for names in (ROWS, ROWS[:3], ["base", "b", "b"], ["c"], ["base", "base"], ROWS):  # a batch whose rows change
        with mixed_batch.route_rows(net, names, router):
            found = steps(net, names)
        for one, other in zip(found, by_peft(net, names), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with net.disable_adapter():
        plain = steps(net, ["base", "base"])
    with mixed_batch.route_rows(net, ["base", "base"], router):
        torch.testing.assert_close(steps(net, ["base", "base"]), plain, rtol=0, atol=0)


def test_adapters_in_float32_on_a_base_in_bfloat16(llama):
    net = several(llama, SETS["alike"], torch.bfloat16)
    with mixed_batch.route_rows(net, ROWS):
        found = steps(net, ROWS)
    for one, other in zip(found, by_peft(net, ROWS), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@cases("case", ["alike", "wider than the base"])
def test_products_of_a_step_do_not_grow_with_adapters_unless_they_outgrow_the_base(llama, case):
    counts = []
    for names in (["a", "b", "base", "a"], ["a", "b", "c", "d"]):
        net = several(llama, SETS[case][:1] * 4)
        ids, cache = torch.arange(28).view(4, 7) + 5, DynamicCache()
        with torch.inference_mode(), mixed_batch.route_rows(net, names):
            net(input_ids=ids, past_key_values=cache)
            with Products() as seen:
                net(input_ids=ids[:, :1], past_key_values=cache)
        counts.append(seen.count)
    assert counts[0] > 0 and (counts[0] == counts[1]) == (case == "alike"), counts


@cases("case", ["alike", "ranks and places", "wider than the base"])
def test_many_adapters_take_no_more_products_than_a_few_more(llama, case):
    counts = []
    for letters in ("hgfedca", "abcdef"):
        net = several(llama, [*SETS[case], *SETS[case], *SETS[case]][:8])
        names = ["base", *letters, "b"]
        with torch.inference_mode(), mixed_batch.route_rows(net, names), Products() as seen:
            found = steps(net, names)
        counts.append(seen.count)
        for one, other in zip(found, by_peft(net, names), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counts[0] == counts[1], counts


@cases("value", [float("nan"), float("inf")])
def test_an_adapter_without_sound_numbers_spoils_its_own_rows_alone(llama, value):
    net = several(llama, SETS["alike"])
    for key, one in net.named_parameters():
        if ".b." in key and ("lora_B" in key or math.isnan(value)):
            one.data.fill_(value)
    with mixed_batch.route_rows(net, ROWS):
        found = steps(net, ROWS)
    for one, other in zip(found, by_peft(net, ROWS), strict=True):
        sound = [name != "b" for name in ROWS]
        assert one.isfinite().flatten(1).all(1).tolist() == sound
        torch.testing.assert_close(one[sound], other[sound], rtol=1e-4, atol=1e-4)


def test_numbers_too_large_for_one_adapters_rows_do_not_reach_other_rows(llama):
    net = several(llama, SETS["alike"])
    for key, one in net.named_parameters():
        if ".b." in key and "lora_A" in key:
            one.data.fill_(float("inf"))
    names = ["a", "b", "c"]
    with mixed_batch.route_rows(net, names):
        found = steps(net, names)
    assert all(one[[0, 2]].isfinite().all() for one in found)


def test_layers_are_pefts_own_again_after_the_block(llama):
    net = several(llama, SETS["alike"])
    before = steps(net, ["a"])
    with pytest.raises(ZeroDivisionError), mixed_batch.route_rows(net, ROWS):
        _ = 1 / 0
    torch.testing.assert_close(steps(net, ["a"]), before, rtol=0, atol=0)


def test_rows_that_cannot_be_told_apart_are_refused(llama):
    net = several(llama, SETS["alike"])
    with (
        mixed_batch.route_rows(net, ["a", "b"]),
        pytest.raises(RuntimeError, match="got 3 rows for a batch of 2"),
    ):
        steps(net, ["a", "b", "c"])
