"""What the engine does when all goes wrong: it is full, late, told to stop, or its model fails."""

import asyncio
import time

import pytest

import peftrun
from peftrun.models import base as base_models
from peftrun.models import device
from peftrun.serving import errors, requests
from peftrun.serving.adapter_registry import AdapterRegistry
from peftrun.serving.batch import ModelRunner
from peftrun.serving.engine import MAX_FAILURES, Engine
from peftrun.serving.metrics import Metrics
from peftrun.serving.service import Service

WORDS = "Is it spam or ham?"


class Weather:
    """What a model goes through on each of its passes: it takes time, or fails."""

    def __init__(self):
        self.seconds, self.fault = 0.0, None

    def __call__(self, *_):
        time.sleep(self.seconds)
        if self.fault:
            raise self.fault


@pytest.fixture
def weather():
    return Weather()


@pytest.fixture
def service(llama, on_tiny, weather):
    spec = peftrun.load(
        *on_tiny(llama), "action=serve", "action.max_batch_size=2", "action.max_waiting=4", "action.request_timeout=20"
    )
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    base.model.register_forward_pre_hook(weather)
    versions, watch = AdapterRegistry(base.name, []), Metrics()
    engine = Engine(ModelRunner(base.model, base.tokenizer.pad_token_id), versions, watch, 2, 4)
    found = Service(base, engine, versions, watch, spec.action, task=spec.task)
    engine.start()
    yield found
    engine.close(10)
    found.close()


async def ask(service, tokens=4, **more):
    wish = requests.CompletionRequest(model="base", prompt=WORDS, max_tokens=tokens, temperature=0.0, **more)
    return await service.collect_response(*await service.submit_request(wish))


def test_more_than_may_wait_are_refused_and_the_others_are_answered(service, weather):
    async def main():
        weather.seconds = 0.2
        first = [asyncio.create_task(ask(service)) for _ in range(2)]
        await asyncio.sleep(0.5)
        later = [asyncio.create_task(ask(service)) for _ in range(6)]
        await asyncio.sleep(0.3)
        weather.seconds = 0.0
        return await asyncio.gather(*first, *later, return_exceptions=True)

    found = asyncio.run(main())
    refused = [one for one in found if isinstance(one, errors.ApiError)]
    assert [one.status for one in refused] == [429, 429] and refused[0].headers == {"Retry-After": "1"}
    texts = {one["choices"][0]["text"] for one in found if isinstance(one, dict)}
    assert len(texts) == 1


def test_an_answer_that_takes_too_long_is_given_up_and_its_place_is_free(service, weather):
    object.__setattr__(service.action, "request_timeout", 0.6)

    async def main():
        weather.seconds = 0.25
        with pytest.raises(errors.ApiError) as late:
            await ask(service, tokens=40)
        assert (late.value.status, late.value.code) == (504, "request_timeout")
        weather.seconds = 0.0
        await ask(service)

    asyncio.run(main())
    assert not service.engine.is_busy


def test_a_failed_pass_fails_its_requests_and_the_engine_goes_on(service, weather, capfd):
    async def main():
        before = await ask(service)
        weather.fault = RuntimeError("out of memory")
        (one,) = await asyncio.gather(ask(service), return_exceptions=True)
        assert (one.status, one.code) == (500, "engine_error") and "out of memory" in one.message
        weather.fault = None
        assert (await ask(service))["choices"] == before["choices"] and not service.engine.failure_reason
        weather.fault = RuntimeError("out of memory")
        for _ in range(MAX_FAILURES):
            both = await asyncio.gather(ask(service), ask(service), return_exceptions=True)
            assert {one.status for one in both} == {500}
        assert "have failed" in service.engine.failure_reason
        weather.fault = None
        assert (await ask(service))["choices"] == before["choices"]
        assert not service.engine.failure_reason

    asyncio.run(main())
    assert not service.engine.is_busy and service.versions.base.num_requests == 0
    assert "out of memory" in capfd.readouterr().err


def test_a_thread_that_ends_is_told_and_nobody_waits_for_it(service, weather):
    async def main():
        weather.fault = SystemExit("gone")
        with pytest.raises(errors.ApiError, match="gone"):
            await ask(service)
        assert "gone" in service.engine.failure_reason
        with pytest.raises(errors.ApiError, match="gone"):
            await ask(service)

    asyncio.run(main())


def test_a_closed_engine_ends_what_runs(service, weather):
    async def main():
        weather.seconds = 0.1
        running = asyncio.create_task(ask(service, tokens=100))
        await asyncio.sleep(0.4)
        await asyncio.to_thread(service.engine.close)
        with pytest.raises(errors.ApiError) as told:
            await running
        assert told.value.status == 503
        with pytest.raises(errors.ApiError, match="shutting down"):
            await ask(service)

    asyncio.run(main())


def test_what_a_slow_reader_has_not_taken_grows_together(service):
    async def main():
        wish = requests.CompletionRequest(
            model="base", prompt=WORDS, max_tokens=30, temperature=0.0, logit_bias={"2": -100.0}
        )
        ticket, letter = await service.submit_request(wish)
        while service.engine.is_busy:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        found = [pieces async for pieces in service.stream_chunks(ticket, letter)]
        assert len(found) == 1 and found[0][0].tokens == 30 == letter.usage.written
        assert found[0][0].text == (await ask(service, tokens=30, logit_bias={"2": -100.0}))["choices"][0]["text"]

    asyncio.run(main())
