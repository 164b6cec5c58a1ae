"""action=serve: what it refuses before anything is loaded, who may ask, and how it ends. What it answers: tests/serve."""

import json
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import TINY_STEPS
from encoders import build_bert, build_t5
from faults import check_failed, check_refused

sys.path.insert(0, str(Path(__file__).parent.parent / "serve"))
import serving

pytestmark = pytest.mark.slow


def hidden(monkeypatch, *names):
    """As if these packages were not installed."""
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr("peftrun.checks.serving.find_spec", lambda name: None if name in names else found(name))


def test_a_missing_extra_is_told_in_one_line(cli, tmp_path, monkeypatch, llama, on_tiny):
    hidden(monkeypatch, "fastapi")
    told = ["action=serve needs package=fastapi", "pip install 'peftrun[serve]'"]
    check_refused(cli, tmp_path, [*on_tiny(llama), "action=serve"], told)


def test_a_key_that_is_not_there_is_told(cli, tmp_path, llama, on_tiny):
    args = [*on_tiny(llama), "action=serve", "action.api_key_env=NO_SUCH_KEY"]
    check_refused(cli, tmp_path, args, ["action.api_key_env=NO_SUCH_KEY", "export NO_SUCH_KEY=KEY"])


def test_base_is_no_name_for_an_adapter(cli, tmp_path, llama, trained, on_tiny):
    args = [*on_tiny(llama), "action=serve", serving.listed({"base": trained})]
    check_refused(cli, tmp_path, args, ["adapter.base: is the name of the base model without any adapter"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": "all"}, "replaces the base's biases"),
        ({"peft_type": "PROMPT_TUNING"}, "is of type PROMPT_TUNING"),
        ({"alora_invocation_tokens": [5]}, "is an aLoRA"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "adapts parameters"),
        (
            {"task_type": "SEQ_CLS"},
            "is an adapter of a classifier, and action=serve supports only language models; measure it",
        ),
    ],
)
def test_adapters_that_cannot_answer_beside_others_are_refused(cli, tmp_path, llama, trained, on_tiny, change, told):
    import shutil

    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    args = [*on_tiny(llama), "action=serve", serving.listed({"odd": tmp_path / "adapter"})]
    check_refused(cli, tmp_path, args, ["adapter.odd=", told])


def test_a_port_that_is_taken_is_told_before_the_base_is_loaded(cli, tmp_path, llama, on_tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        args = [*on_tiny(llama), "action=serve", f"action.port={port}"]
        check_failed(cli, tmp_path, args, [f"action.port={port}: cannot be had", "type action.port=0"])


@pytest.mark.parametrize("action", ["serve", "browse"])
def test_a_host_that_is_none_is_told_and_not_its_port(cli, tmp_path, llama, on_tiny, action):
    args = [*on_tiny(llama), f"action={action}", "action.host=nohost.invalid", "action.port=0"]
    check_failed(cli, tmp_path, args, ["action.host=nohost.invalid: is no address", "type action.host=127.0.0.1"])


def test_an_encoder_alone_is_told_who_measures_it(cli, tmp_path, on_tiny):
    args = [*on_tiny(build_bert(tmp_path / "bert")), "action=serve", "action.port=0"]
    check_failed(
        cli, tmp_path, args, ["is a BertModel, and action=serve answers with decoders alone", "action=evaluate"]
    )


def test_an_encoder_with_a_decoder_is_refused(cli, tmp_path, llama, on_tiny):
    t5 = build_t5(tmp_path / "t5")
    args = [*on_tiny(t5), "action=serve", "action.port=0"]
    check_failed(cli, tmp_path, args, ["is an encoder with a decoder", "action=generate"])


CHAT = {"model": "mine", "messages": [{"role": "user", "content": "Is 3 even?"}], "max_tokens": 5, "temperature": 0}


def test_a_trained_gpt2_is_served_as_action_generate_answers_and_only_to_those_who_have_the_key(
    cli, tmp_path, gpt2, on_tiny
):
    adapter = cli(*on_tiny(gpt2), *TINY_STEPS).run_dir
    asked = cli(
        *on_tiny(gpt2), "action=generate", f"adapter={adapter}", "action.prompt='Is 3 even?'", "action.max_new_tokens=5"
    )
    expected = json.loads((asked.run_dir / "generations.jsonl").read_text())["answer"]
    args = [*on_tiny(gpt2), serving.listed({"mine": adapter}), "action.api_key_env=OUR_KEY", "action.host=0.0.0.0"]
    with serving.serving(tmp_path / "here", *args, OUR_KEY="s3cret") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "s3cret"}):
            found = httpx.post(f"{url}/chat/completions", json=CHAT, headers=headers)
            assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
            assert ("did not provide" in found.json()["error"]["message"]) == (not headers)
        assert httpx.get(f"{url.removesuffix('/v1')}/metrics").status_code == 401
        assert httpx.get(f"{url.removesuffix('/v1')}/health").status_code == 200
        found = httpx.post(f"{url}/chat/completions", json=CHAT, headers={"Authorization": "Bearer s3cret"}).json()
        assert found["choices"][0]["message"]["content"].strip() == expected
        assert server.stop(signal.SIGINT) == 0
        run = next(server.where.glob("outputs/serve/*"))
    record = server.record()
    assert record["status"] == "completed" and record["metrics"]["requests"] == 6
    assert [one["name"] for one in record["adapters"]] == ["mine"] and record["adapters"][0][
        "saved_difference"
    ] is not None
    assert all("s3cret" not in path.read_text() for path in run.rglob("*") if path.is_file())


def test_whoever_may_reach_it_without_a_key_may_not_change_adapters(tmp_path, llama, trained, on_tiny):
    with serving.serving(tmp_path / "here", *on_tiny(llama), "action.host=0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        found = httpx.post(f"{url}/load_lora_adapter", json={"lora_name": "x", "lora_path": str(trained)})
        assert found.status_code == 403
        assert server.stop() == 0
        assert "no key is needed; type action.api_key_env=" in (server.where / "stderr.txt").read_text()


def test_told_to_stop_it_refuses_new_requests_and_finishes_those_that_run(tmp_path, llama, trained, on_tiny):
    long = CHAT | {"max_tokens": 200, "logit_bias": {"2": -100}}
    args = [*on_tiny(llama), serving.listed({"mine": trained})]
    with serving.serving(tmp_path / "here", *args) as server, ThreadPoolExecutor(8) as pool:

        def ask():
            return httpx.post(f"{server.url}/chat/completions", json=long | {"n": 4}, timeout=120)

        alone = ask().json()["choices"]
        running = [pool.submit(ask) for _ in range(6)]
        while httpx.get(f"{server.root}/metrics").text.count("peftrun_requests_running 0.0"):
            time.sleep(0.01)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        refused = set()
        while server.process.poll() is None:
            try:
                refused.add(httpx.post(f"{server.url}/chat/completions", json=CHAT, timeout=5).status_code)
            except httpx.TransportError:
                break
        assert server.process.wait(60) == 0
        answers = [one.result() for one in running]
    assert all(one.status_code == 200 and one.json()["choices"] == alone for one in answers)
    assert refused <= {503}
    assert server.record()["status"] == "completed"
    assert "Traceback" not in (server.where / "stderr.txt").read_text()


def test_what_does_not_finish_in_time_is_told_so(tmp_path, llama, on_tiny):
    args = [*on_tiny(llama), "action.shutdown_timeout=0"]
    asked = {"model": "base", "prompt": "dog", "max_tokens": 250, "stream": True, "n": 16, "logit_bias": {"2": -100}}
    with (
        serving.serving(tmp_path / "here", *args) as server,
        httpx.stream("POST", f"{server.url}/completions", json=asked, timeout=60) as found,
    ):
        lines = found.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert server.stop() == 0
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
