"""What a step computes for all its rows at once: tokens, caches, and how little of it the host reads."""

import random

import pytest
import serving
import torch
from test_lanes import Asked, loaded
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from peftrun.serving import kv_cache, sampling
from peftrun.serving.adapter_registry import AdapterVersion
from peftrun.serving.batch import ModelRunner, RunningBatch
from peftrun.serving.batch_sampler import BatchSampler
from peftrun.serving.detokenizer import StreamDetokenizer
from peftrun.serving.request_state import SequenceState
from peftrun.serving.sampling import SamplingParams

VOCABULARY = 60


def state(params, prompt, written=(), seed=0):
    return SequenceState(None, 0, list(prompt), params, 99, (), None, seed, list(written))


def random_params(draw):
    pick = draw.choice
    return SamplingParams(
        temperature=pick([0, 0.7, 1.0]), top_p=pick([1.0, 0.6]), top_k=pick([0, 5]), presence_penalty=pick([0, 0.5]),
        frequency_penalty=pick([0, 1.5]), repetition_penalty=pick([1.0, 1.3]), logit_bias=pick([{}, {3: 4.0, 7: -9.0}]),
        logprobs=pick([None, 0, 3]),
    )  # fmt: skip


def by_transformers(logits, row):
    """(V,): scores of a row that is drawn, by transformers' own processors, and OpenAI's definition of its penalties."""
    how, scores = row.sampling, logits[None].clone()
    ids = torch.tensor([row.prompt + row.written])
    if how.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(ids, scores)
    for token, bias in how.logit_bias.items():
        scores[0, token] += bias
    for token in set(row.written):
        scores[0, token] -= how.frequency_penalty * row.written.count(token) + how.presence_penalty
    if how.temperature:
        scores = TemperatureLogitsWarper(float(how.temperature))(ids, scores)
        scores = TopKLogitsWarper(how.top_k)(ids, scores) if how.top_k else scores
        scores = TopPLogitsWarper(how.top_p)(ids, scores) if how.top_p < 1 else scores
    return scores[0]


def test_rows_of_a_batch_are_sampled_as_each_alone_and_as_transformers_would():
    draw = random.Random(0)
    rows = [
        state(random_params(draw), draw.sample(range(VOCABULARY), 5), draw.sample(range(VOCABULARY), index % 3), index)
        for index in range(40)
    ]
    torch.manual_seed(0)
    sampler = None
    for step in range(12):
        logits = torch.randn(len(rows), VOCABULARY) * 2
        if step == 6:  # rows leave: the counts of those that stay go on
            rows, logits, sampler = rows[::2], logits[::2], None
        alone = [BatchSampler([state(row.sampling, row.prompt, row.written, row.seed)], logits[index : index + 1]).sample(
            logits[index : index + 1]) for index, row in enumerate(rows)]  # fmt: skip
        sampler = sampler or BatchSampler(rows, logits)
        found = sampler.sample(logits)
        assert found.tokens == [one.tokens[0] for one in alone] == found.on_device[:, 0].tolist()
        assert found.logprobs == {index: one.logprobs[0] for index, one in enumerate(alone) if one.logprobs}
        for index, (row, token) in enumerate(zip(rows, found.tokens, strict=True)):
            scores = by_transformers(logits[index], row)
            assert scores[token].isfinite() and (row.sampling.temperature or token == scores.argmax()), row
            row.written.append(token)


def test_draws_are_splitmix64_and_tokens_come_as_often_as_their_probabilities():
    def reference(seed, step, mask=2**64 - 1):
        mixed = (seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return ((mixed ^ (mixed >> 31)) >> 40) / 2**24

    assert (
        reference(0, 0) == (0xE220A8397B1DCDAF >> 40) / 2**24
    )  # the first number of the published generator from seed 0
    seeds = [sampling.choose_seed(SamplingParams(seed=seed), 0) for seed in (0, 1, -5, 2**63 - 1, -(2**63))]
    for step in (0, 1, 1000):
        found = sampling.draw_uniform(torch.tensor(seeds), torch.full((5,), step))
        assert found.tolist() == [reference(seed, step) for seed in seeds]
    scores = torch.tensor([0.0, 2.0, -torch.inf, 1.0])
    for count, steps in ((20_000, [0] * 20_000), (20_000, range(20_000))):  # of many answers, and of one
        starts = torch.arange(count) if len(set(steps)) == 1 else torch.zeros(count, dtype=torch.long)
        uniform = sampling.draw_uniform(starts, torch.tensor(list(steps)))[:, None]
        for tokens in (
            sampling.draw_tokens(scores.expand(count, -1), uniform),
            sampling.draw_likeliest(scores.expand(count, -1), uniform, torch.full((count, 1), 4), torch.ones(count, 1)),
        ):
            share = torch.bincount(tokens, minlength=4) / count
            torch.testing.assert_close(share, scores.softmax(-1), rtol=0, atol=0.015)


def test_a_row_keeps_its_keys_and_values_whoever_joins_and_leaves(monkeypatch):
    monkeypatch.setattr(kv_cache, "SPARE_POSITIONS", 3)
    draw, torch_draw = random.Random(0), torch.Generator().manual_seed(0)
    cache, rows = kv_cache.create_cache(), []  # of each row: its keys, (heads, T, D)

    def make(count, width):
        return torch.randn(count, 2, width, 4, generator=torch_draw)

    for _ in range(300):
        action = draw.choice(["join", "leave", "step", "step"]) if rows else "join"
        if action == "step":
            keys = make(len(rows), 1)
            cache.update(keys, -keys[..., :3], 0)
            rows = [torch.cat([row, new], dim=1) for row, new in zip(rows, keys, strict=True)]
        elif action == "join":
            joining, other = make(draw.randrange(1, 4), draw.randrange(1, 12)), kv_cache.create_cache()
            joining[draw.randrange(len(joining)), :, 0] = torch.inf  # stays in the buffers after the row has left
            other.update(joining, -joining[..., :3], 0)
            if rows:
                kv_cache.join_caches(cache, other)
            else:
                cache = other
            rows = [*rows, *joining]
        else:
            order = kv_cache.fill_holes(sorted(draw.sample(range(len(rows)), draw.randrange(len(rows)))))
            rows = [rows[index] for index in order]
            if rows:
                kv_cache.keep_rows(cache, order, max(row.shape[1] for row in rows))
        if rows:
            layer = cache.layers[0]
            assert layer.keys.shape == (len(rows), 2, max(row.shape[1] for row in rows), 4)
            assert cache.get_seq_length() == layer.keys.shape[2]
            for found, values, row in zip(layer.keys, layer.values, rows, strict=True):
                assert torch.equal(found[:, -row.shape[1] :], row)
                assert torch.equal(values[:, -row.shape[1] :], -row[..., :3])
                assert found[:, : -row.shape[1]].isfinite().all()


READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


class HostReads(TorchFunctionMode):
    """Counts values that the host waits for: on a device each would stop it."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def net_and_tokenizer(tmp_path_factory, llama):
    paths = serving.adapters(llama, tmp_path_factory.mktemp("pair"), "one", "two")
    return loaded(llama, paths), serving.Offline(llama, paths).tokenizer


def count_step(net, tokenizer, count):
    """Host reads and operations of a step of so many rows, whose parameters and adapters differ."""
    draw, batch = random.Random(0), RunningBatch(ModelRunner(net, tokenizer.eos_token_id))
    kinds = [
        SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.2, logprobs=2),
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.0, logit_bias={5: 1.0}),
    ]
    rows = [
        SequenceState(
            Asked(AdapterVersion(name, name)), index, [draw.randrange(5, 300) for _ in range(3 + index % 5)],
            kinds[index % 3], 99, (), StreamDetokenizer(tokenizer, ["stop"]), index,
        )
        for index, name in zip(range(count), ["one", "two", "base"] * count, strict=False)
    ]  # fmt: skip
    batch.admit(rows)
    batch.step()  # the first step after rows have joined prepares what the next ones use again
    with HostReads() as reads:
        batch.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        batch.step()
    operations = [event.name for event in profiled.events() if event.name.startswith("aten::")]
    return reads.count, operations.count("aten::_local_scalar_dense"), len(operations)


def test_host_reads_and_operations_of_a_step_do_not_grow_with_its_rows(net_and_tokenizer):
    small, large = (count_step(*net_and_tokenizer, count) for count in (6, 32))
    # the new tokens with their log probabilities, once; and transformers asks whether a row is padded
    assert small[:2] == large[:2] and small[0] <= 3 and small[1] <= 1, (small, large)
    assert large[2] <= small[2] * 1.02, (small, large)
