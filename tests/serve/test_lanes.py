"""Rows that join and leave a running batch at random: each is written as if it were alone with its adapter."""

import random

import pytest
import serving
import torch
from cases import cases
from conftest import build_llama
from merge_cases import FAMILIES, trained_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from peftrun.adapters import mixed_batch
from peftrun.serving.adapter_registry import AdapterVersion
from peftrun.serving.batch import ModelRunner, RunningBatch
from peftrun.serving.detokenizer import StreamDetokenizer
from peftrun.serving.request_state import SequenceState
from peftrun.serving.sampling import SamplingParams

CASES = {
    "plain": ["one", "two"],
    "dora": ["dora", "one", "two"],
    "in full": ["full", "one", "two"],
    "all": list(serving.KINDS),
}


class Asked:
    """The part of a ticket that lanes read."""

    def __init__(self, version: AdapterVersion) -> None:
        self.version = version


def rows(offline, names, net, count, seed):
    draw, found = random.Random(seed), []
    for number in range(count):
        name = draw.choice([*names, "base"])
        prompt = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 40))]
        alone = None if name == "base" else mixed_batch.why_exclusive(name, net.peft_config[name])
        row = SequenceState(
            Asked(AdapterVersion(name, name, alone=alone)), number, prompt, SamplingParams(temperature=0), draw.randrange(1, 24),
            {offline.tokenizer.eos_token_id}, StreamDetokenizer(offline.tokenizer, []), 0,
        )  # fmt: skip
        found.append(row)
    return found


def answer(net, tokenizer, waiting, seed):
    """Lets the rows in a few at a time, and steps."""
    draw, lanes = random.Random(seed), {}
    computer = ModelRunner(net, tokenizer.pad_token_id or tokenizer.eos_token_id)
    while waiting or any(lane.rows for lane in lanes.values()):
        count = draw.randrange(0, 5)
        now, waiting = waiting[:count], waiting[count:]
        for key in dict.fromkeys(
            row.request.version.internal_name if row.request.version.alone else None for row in now
        ):
            own = [
                row for row in now if (row.request.version.internal_name if row.request.version.alone else None) == key
            ]
            lanes.setdefault(key, RunningBatch(computer)).admit(own)
        for lane in lanes.values():
            if lane.rows:
                lane.step()
    computer.reset_routing()


def check(offline, net, names, seed=0):
    found = rows(offline, names, net, 20, seed)
    answer(net, offline.tokenizer, list(found), seed)
    for row in found:
        expected = offline.ids(row.request.version.name, row.prompt, row.limit)
        assert row.written == expected, (row.request.version.name, row.prompt)


def loaded(base, paths):
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for place, (name, path) in enumerate(paths.items()):
        if place == 0:
            net = PeftModel.from_pretrained(net, str(path), adapter_name=name)
        else:
            net.load_adapter(str(path), name)
    return net.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory, llama):
    return serving.adapters(llama, tmp_path_factory.mktemp("kinds"), *serving.KINDS)


@cases("case", CASES, every=2)
def test_a_row_is_written_as_if_it_were_alone(llama, made, case):
    paths = {name: made[name] for name in CASES[case]}
    check(serving.Offline(llama, paths), loaded(llama, paths), list(paths))


def test_gpt2_with_its_absolute_positions(tmp_path, gpt2):
    settings = {"r": 4, "target_modules": ["c_attn", "c_proj"], "lora_alpha": 32, "fan_in_fan_out": True}
    paths = {
        name: trained_adapter(FAMILIES["gpt2"], gpt2, tmp_path / name, settings, seed=n) for n, name in enumerate("gh")
    }
    check(serving.Offline(gpt2, paths, "gpt2"), loaded(gpt2, paths), list(paths))


def test_a_window_of_attention_is_kept_by_the_mask(tmp_path, llama):
    torch.manual_seed(0)
    build_llama(tmp_path / "mistral")
    offline = serving.Offline(tmp_path / "mistral", {})
    settings = dict(
        vocab_size=len(offline.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=8, initializer_range=0.2,
    )  # fmt: skip
    MistralForCausalLM(MistralConfig(**settings)).save_pretrained(tmp_path / "mistral")
    check(offline, loaded(tmp_path / "mistral", {}), [])
