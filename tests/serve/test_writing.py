"""Text and tokens of one answer: whole characters, nothing of a stop string, draws of its own."""

import random

import pytest
import torch
from cases import cases
from conftest import _tokenizer

from peftrun.serving import sampling
from peftrun.serving.batch_sampler import BatchSampler
from peftrun.serving.detokenizer import REPLACEMENT_CHARACTER, StreamDetokenizer
from peftrun.serving.request_state import SequenceState
from peftrun.serving.sampling import SamplingParams

TEXTS = ["Ça va? 😀👩‍👩‍👧 fin", "漢字と仮名", "plain words, a  double space\n\n\ttab", "e\u0301 مرحبا"]


@pytest.fixture(scope="module")
def tokenizer():
    return _tokenizer(chat=True)


def pieces(tokenizer, ids, stops=()):
    writing = StreamDetokenizer(tokenizer, list(stops))
    found = []
    for token in ids:
        found.append(writing.add_token(token))
        if writing.stopped:
            return found, True
    return [*found, writing.flush_text()], writing.stopped


@cases("text", TEXTS)
def test_pieces_are_whole_characters_and_make_up_the_text(tokenizer, text):
    found, stopped = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(found) == text and not stopped
    assert all(REPLACEMENT_CHARACTER not in piece for piece in found)


def test_random_tokens_make_up_what_the_tokenizer_decodes(tokenizer):
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 40))]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found, _ = pieces(tokenizer, ids)
        assert "".join(found) == whole


def test_a_stop_string_ends_the_answer_wherever_tokens_are_cut(tokenizer):
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choice("ab\n😀") for _ in range(30))
        stops = [
            "".join(draw.choice("ab\n😀") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(1, 3))
        ]
        found, stopped = pieces(tokenizer, tokenizer(text)["input_ids"], stops)
        places = [text.find(stop) for stop in stops if stop in text]
        assert stopped == bool(places)
        # the first to be complete wins: what was told before it holds no stop string
        assert text.startswith("".join(found)) and not any(stop in "".join(found) for stop in stops)
        if len(stops) == 1:
            assert "".join(found) == text.partition(stops[0])[0]


def choose(logits, how, number=0, written=()):
    return sample(logits, how, number, written).tokens[0]


def sample(logits, how, number=0, written=()):
    row = SequenceState(None, 0, [1, 2], how, 9, (), None, sampling.choose_seed(how, number), list(written))
    return BatchSampler([row], logits[None]).sample(logits[None])


def test_the_same_seed_draws_the_same_and_each_answer_has_its_own():
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0))
    how = SamplingParams(temperature=1.0, seed=5)
    assert choose(logits, how) == choose(logits, how)
    assert len({choose(logits, how, number) for number in range(20)}) > 5


def test_what_is_asked_changes_the_choice():
    logits = torch.zeros(50)
    logits[7], logits[8] = 5.0, 4.0
    assert choose(logits, SamplingParams(temperature=0)) == 7
    assert choose(logits, SamplingParams(temperature=0, logit_bias={7: -100.0})) == 8
    assert choose(logits, SamplingParams(temperature=0, logit_bias={30: 100.0})) == 30
    assert choose(logits, SamplingParams(temperature=0, frequency_penalty=2.0), written=[7]) == 8
    assert choose(logits, SamplingParams(temperature=0, presence_penalty=2.0), written=[7]) == 8
    assert choose(logits, SamplingParams(temperature=0, presence_penalty=0.5), written=[7]) == 7
    assert choose(logits, SamplingParams(temperature=0, repetition_penalty=2.0), written=[7]) == 8
    drawn = {choose(logits, SamplingParams(temperature=2.0, top_k=2, seed=seed)) for seed in range(50)}
    assert drawn == {7, 8}
    assert {choose(logits, SamplingParams(temperature=1.0, top_p=0.5, seed=seed)) for seed in range(50)} == {7}
    assert logits[7] == 5.0, "the model's own numbers are left as they are"


def test_log_probabilities_are_the_models_own():
    logits = torch.tensor([0.0, 1.0, 2.0])
    biased = {"temperature": 0, "logit_bias": {1: 100.0}}
    found = sample(logits, SamplingParams(**biased, logprobs=2)).logprobs[0]
    assert found.token == 1 and found.logprob == pytest.approx(logits.log_softmax(-1)[1].item())
    assert [token for token, _ in found.others] == [2, 1]
    assert found.others[1][1] == found.logprob
    assert sample(logits, SamplingParams(**biased, logprobs=0)).logprobs[0].others == []
    assert sample(logits, SamplingParams(**biased)).logprobs == {}
