"""A real server, asked by OpenAI's own client: nothing is lost, and every answer is the one its adapter gives alone."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import serving
from cases import cases

WORDS = (
    "Is 3 even?",
    "call now to win a prize",
    "yes",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "¿spam? 😀",
)
QUEUE, BODY = 200, 20_000


@pytest.fixture(scope="module")
def paths(tmp_path_factory, llama):
    return serving.adapters(llama, tmp_path_factory.mktemp("served"), "one", "two", "dora")


@pytest.fixture(scope="module")
def offline(llama, paths):
    return serving.Offline(llama, paths)


@pytest.fixture(scope="module")
def server(tmp_path_factory, llama, on_tiny, paths):
    given = {name: paths[name] for name in ("one", "two")}
    args = [*on_tiny(llama), serving.listed(given), f"action.max_waiting={QUEUE}", "action.max_batch_size=8"]
    with serving.serving(tmp_path_factory.mktemp("server"), *args, f"action.max_body_bytes={BODY}") as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in (found.where / "stderr.txt").read_text()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def greedy(client, model, text, tokens=12, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=tokens, **more)


def metric(server, name):
    text = httpx.get(f"{server.root}/metrics").text
    lines = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return next((float(line.rpartition(" ")[2]) for line in lines), 0.0)  # a counter appears with its first request


def idle(server):
    """Waits until nothing is computed any more."""
    for _ in range(600):
        if metric(server, "peftrun_requests_running") == 0 == metric(server, "peftrun_requests_waiting"):
            return True
        time.sleep(0.05)
    return False


def test_models_are_the_base_and_its_adapters(client):
    found = {one.id: one for one in client.models.list()}
    assert set(found) == {"base", "tiny-llama", "one", "two"}
    assert client.models.retrieve("one") == found["one"]
    assert found["one"].parent == "tiny-llama" and found["base"].parent is None
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("three")


@cases("model", ["one", "two", "base", "tiny-llama"])
def test_a_greedy_answer_is_the_one_that_the_adapter_gives_alone(client, offline, model):
    own = "base" if model == "tiny-llama" else model
    for text in WORDS:
        found = greedy(client, model, text)
        said, read, written = offline.chat(own, text, 12)
        assert found.choices[0].message.content == said
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (read, written)
        assert found.usage.total_tokens == read + written
        assert found.choices[0].finish_reason == ("length" if written == 12 else "stop")
        completed = client.completions.create(model=model, prompt=text, temperature=0, max_tokens=9)
        assert completed.choices[0].text == offline.completion(own, text, 9)


def test_a_stream_says_the_same_in_pieces(client, offline):
    for text in WORDS:
        chunks = list(greedy(client, "two", text, stream=True, stream_options={"include_usage": True}))
        said, read, written = offline.chat("two", text, 12)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == written
        assert chunks[-1].usage.prompt_tokens == read and len({chunk.id for chunk in chunks}) == 1
        parts = client.completions.create(model="one", prompt=text, temperature=0, max_tokens=9, stream=True)
        assert "".join(part.choices[0].text for part in parts) == offline.completion("one", text, 9)


def test_sixty_four_mixed_requests_at_once_are_all_answered_truly(client, offline):
    draw = random.Random(0)
    asked = [
        (draw.choice(["one", "two", "base"]), draw.choice(WORDS), draw.randrange(1, 30), draw.random() < 0.5)
        for _ in range(64)
    ]

    def ask(one):
        model, text, tokens, stream = one
        found = greedy(client, model, text, tokens, stream=stream)
        if not stream:
            return found.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in found)

    with ThreadPoolExecutor(64) as pool:
        said = list(pool.map(ask, asked))
    assert said == [offline.chat(model, text, tokens)[0] for model, text, tokens, _ in asked]


def test_a_seed_draws_the_same_alone_and_in_company(client):
    def ask(seed, model="one", n=1):
        found = client.completions.create(model=model, prompt="dog", temperature=1, seed=seed, max_tokens=15, n=n)
        return [choice.text for choice in found.choices]

    alone = [ask(seed) for seed in range(6)]
    assert len({said[0] for said in alone}) == 6
    with ThreadPoolExecutor(12) as pool:
        company = [pool.submit(greedy, client, "two", text, 25) for text in WORDS]
        again = list(pool.map(ask, range(6)))
        assert all(one.result() for one in company)
    assert again == alone
    several = ask(3, n=4)
    assert several[0] == alone[3][0] and len(set(several)) == 4


def test_stop_strings_and_several_prompts(client, offline):
    opening = offline.tokenizer.convert_tokens_to_ids(
        "<|im_start|>"
    )  # special tokens are in no text, and yet may be named as stops
    stopped = client.completions.create(
        model="one", prompt="dog", max_tokens=9, temperature=0, stop=["<|im_start|>"], logit_bias={str(opening): 100}
    )
    assert (stopped.choices[0].finish_reason, stopped.choices[0].text, stopped.usage.completion_tokens) == (
        "stop",
        "",
        1,
    )
    whole = offline.completion("one", "dog", 30)
    stop = whole[5:7]
    found = client.completions.create(model="one", prompt="dog", temperature=0, max_tokens=30, stop=stop)
    assert found.choices[0].text == whole.partition(stop)[0] and found.choices[0].finish_reason == "stop"
    parts = list(
        client.completions.create(model="one", prompt="dog", temperature=0, max_tokens=30, stop=[stop], stream=True)
    )
    assert "".join(part.choices[0].text for part in parts) == whole.partition(stop)[0]
    ids = offline.tokenizer("yes")["input_ids"]
    both = client.completions.create(model="one", prompt=["dog", "yes"], temperature=0, max_tokens=6)
    assert [one.text for one in both.choices] == [offline.completion("one", text, 6) for text in ("dog", "yes")]
    assert [one.index for one in both.choices] == [0, 1] and both.usage.completion_tokens == 12
    assert (
        client.completions.create(model="one", prompt=ids, temperature=0, max_tokens=6).choices[0].text
        == both.choices[1].text
    )


def test_log_probabilities(client, offline):
    found = greedy(client, "one", "yes", 4, logprobs=True, top_logprobs=3).choices[0]
    tokens = found.logprobs.content
    assert len(tokens) == 4 and all(len(one.top_logprobs) == 3 for one in tokens)
    assert all(one.logprob == one.top_logprobs[0].logprob <= 0 for one in tokens), "greedy: each is the likeliest"
    legacy = (
        client.completions.create(model="one", prompt="yes", temperature=0, max_tokens=4, logprobs=2)
        .choices[0]
        .logprobs
    )
    assert len(legacy.tokens) == len(legacy.token_logprobs) == len(legacy.top_logprobs) == len(legacy.text_offset) == 4
    parts = greedy(client, "one", "yes", 4, logprobs=True, top_logprobs=3, stream=True)
    streamed = [one for part in parts for one in (part.choices[0].logprobs.content if part.choices[0].logprobs else [])]
    assert [one.token for one in streamed] == [one.token for one in tokens]


TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
CHAT = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BAD = {
    "unknown model": ({"model": "three"}, 404, "model_not_found", "model"),
    "no model": ({"model": None}, 400, "missing_required_parameter", "model"),
    "no messages": ({"messages": []}, 400, "invalid_value", "messages"),
    "message is no object": ({"messages": ["hi"]}, 400, "invalid_value", "messages[0]"),
    "unknown role": ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "invalid_value", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "invalid_value", "messages[0]"),
    "calls by a user": ({"messages": [{"role": "user", "content": "hi", "tool_calls": CALLS}]}, 400, "invalid_value", "messages[0]"),
    "calls that are not written": ({"messages": [{"role": "assistant", "tool_calls": CALLS}]}, 400, None, "messages"),
    "arguments": (
        {"messages": [{"role": "assistant", "tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": "{"}}]}]},
        400, "invalid_value", "messages[0].tool_calls[0].function.arguments",
    ),
    "tools that are not shown": ({"tools": TOOLS}, 400, "unsupported_value", "tools"),
    "no list of tools": ({"tools": {"f": 1}}, 400, "invalid_value", "tools"),
    "no tool": ({"tools": ["f"]}, 400, "invalid_value", "tools[0]"),
    "kind of tool": ({"tools": [*TOOLS, {"type": "retrieval"}]}, 400, "invalid_value", "tools[1].type"),
    "no function": ({"tools": [{"type": "function"}]}, 400, "missing_required_parameter", "tools[0].function"),
    "parameters": ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]}, 400, "invalid_value", "tools[0].function.parameters"),
    "strict": ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, 400, "invalid_value", "tools[0].function.strict"),
    "a call is required": ({"tools": TOOLS, "tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    "one call at most": ({"tools": TOOLS, "parallel_tool_calls": False}, 400, "unsupported_value", "parallel_tool_calls"),
    "json answers": ({"response_format": {"type": "json_object"}}, 400, "unsupported_value", "response_format"),
    "audio": ({"modalities": ["text", "audio"]}, 400, "unsupported_value", "modalities"),
    "unknown field": ({"beam_width": 3}, 400, "unknown_parameter", "beam_width"),
    "hot": ({"temperature": 2.5}, 400, "invalid_value", "temperature"),
    "text for a number": ({"temperature": "1"}, 400, "invalid_value", "temperature"),
    "top_p": ({"top_p": 0}, 400, "invalid_value", "top_p"),
    "n": ({"n": 0}, 400, "invalid_value", "n"),
    "no tokens": ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "five stops": ({"stop": list("abcde")}, 400, "invalid_value", "stop"),
    "empty stop": ({"stop": ""}, 400, "invalid_value", "stop"),
    "penalty": ({"presence_penalty": 3}, 400, "invalid_value", "presence_penalty"),
    "bias for no token": ({"logit_bias": {"999999": 1}}, 400, None, "logit_bias"),
    "bias for a word": ({"logit_bias": {"dog": 1}}, 400, None, "logit_bias"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    "usage without a stream": ({"stream_options": {"include_usage": True}}, 400, None, "stream_options"),
    "too long an answer": ({"max_tokens": 250}, 400, "context_length_exceeded", "messages"),
    "too long a prompt": (
        {"messages": [{"role": "user", "content": "yes " * 300}], "max_tokens": None}, 400, "context_length_exceeded", "messages",
    ),
}  # fmt: skip


@cases("case", BAD)
def test_a_bad_request_is_refused_by_name(server, case):
    change, status, code, param = BAD[case]
    found = httpx.post(f"{server.url}/chat/completions", json=CHAT | change)
    error = found.json()["error"]
    assert (found.status_code, error["code"], error["param"]) == (status, code, param), found.text
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if code != "missing_required_parameter":
        streamed = httpx.post(f"{server.url}/chat/completions", json=CHAT | {"stream": True} | change)
        assert streamed.status_code == status or "stream_options" in change


RAW = {
    "not JSON": (b"{", 400, "invalid_json"),
    "no object": (b"[1]", 400, "invalid_json"),
    "not a number": (b'{"temperature": NaN}', 400, "invalid_json"),
    "half a character": (
        rb'{"model": "one", "messages": [{"role": "user", "content": "\ud800"}]}',
        400,
        "invalid_json",
    ),
    "no text": (b"\xff\xfe", 400, "invalid_json"),
    "deep": (b"[" * 9000, 400, "invalid_json"),
    "empty": (b"", 400, "invalid_json"),
    "large": (b'{"model": "' + b"x" * BODY + b'"}', 413, "request_too_large"),
}


@cases("case", RAW)
def test_a_body_that_is_none_is_refused(server, case):
    body, status, code = RAW[case]
    found = httpx.post(f"{server.url}/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


def test_a_large_body_without_its_length_is_refused(server):
    found = httpx.post(
        f"{server.url}/completions", content=iter([b"x" * 5000] * 9), headers={"Content-Type": "application/json"}
    )
    assert found.status_code == 413


def test_routes_and_methods_that_are_not_there_are_told_in_the_same_shape(server):
    for found, status in [
        (httpx.get(f"{server.url}/embeddings"), 404),
        (httpx.get(f"{server.url}/completions"), 405),
        (httpx.post(f"{server.url}/completions", data={"a": "b"}), 415),
    ]:
        assert found.status_code == status and found.json()["error"]["message"]
    assert httpx.get(f"{server.root}/health").json() == {"status": "ok"}


def test_a_row_whose_client_has_gone_is_freed(server, client):
    assert idle(server)
    before = metric(server, 'peftrun_generated_tokens_total{model="one"}')
    for stream in (True, False):
        asked = {"model": "one", "prompt": "dog", "max_tokens": 240, "stream": stream, "logit_bias": {"2": -100}}
        if stream:
            with httpx.stream("POST", f"{server.url}/completions", json=asked, timeout=60) as found:
                next(found.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/completions", json=asked | {"n": 8}, timeout=0.2)
        assert idle(server)
    assert metric(server, 'peftrun_generated_tokens_total{model="one"}') - before < 9 * 240


def test_a_client_that_does_not_read_holds_nobody(server, client, offline):
    host, port = server.root.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "one", "prompt": "dog", "max_tokens": 240, "stream": True, "n": 8, "logprobs": 20}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect((host, int(port)))
        deaf.sendall(head.encode() + body)
        for text in WORDS:
            assert greedy(client, "two", text).choices[0].message.content == offline.chat("two", text, 12)[0]
        assert idle(server), "its answers are computed though nobody reads them"


def swap(server, action, **body):
    return httpx.post(f"{server.url}/{action}_lora_adapter", json=body, timeout=120)


def test_adapters_come_and_go(server, client, offline, paths):
    found = swap(server, "load", lora_name="dora", lora_path=str(paths["dora"]))
    assert (found.status_code, found.json()["proof"]["name"]) == (200, "dora")
    assert "dora" in {one.id for one in client.models.list()}
    asked = [(model, text) for model in ("dora", "one", "two", "base") for text in WORDS]
    with ThreadPoolExecutor(8) as pool:  # DoRA beside LoRA: in batches of their own
        said = list(pool.map(lambda one: greedy(client, *one).choices[0].message.content, asked))
    assert said == [offline.chat(model, text, 12)[0] for model, text in asked]
    assert swap(server, "unload", lora_name="dora").status_code == 200
    with pytest.raises(openai.NotFoundError):
        greedy(client, "dora", "hi")
    assert swap(server, "unload", lora_name="dora").status_code == 404


def test_adapters_that_cannot_come_are_refused_and_leave_nothing(server, client, paths, tmp_path):
    before = {one.id for one in client.models.list()}
    nobody = tmp_path / "nobody"
    for body, told in [
        ({"lora_name": "one", "lora_path": str(paths["one"])}, "already been loaded"),
        ({"lora_name": "base", "lora_path": str(paths["one"])}, "the base's own name"),
        ({"lora_name": "x", "lora_path": str(nobody)}, "is not a folder"),
        ({"lora_name": "a/b", "lora_path": str(paths["one"])}, "'a/b' must be letters"),
        ({"lora_name": "x"}, "lora_path"),
    ]:
        found = swap(server, "load", **body)
        assert found.status_code == 400 and told in found.json()["error"]["message"], found.text
    assert {one.id for one in client.models.list()} == before


@pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_an_adapter_replaced_many_times_under_load(server, client, offline, paths, times):
    assert swap(server, "load", lora_name="turn", lora_path=str(paths["one"])).status_code == 200
    over, wrong, answered = threading.Event(), [], []

    def ask(number):
        draw = random.Random(number)
        while not over.is_set():
            text = draw.choice(WORDS)
            model = draw.choice(["turn", "two", "turn"])
            said = greedy(client, model, text, 10).choices[0].message.content
            right = ("one", "two") if model == "turn" else (model,)
            answered.append(model)
            if said not in [offline.chat(name, text, 10)[0] for name in right]:
                wrong.append((model, text, said))

    for name in ("one", "two"):
        for text in WORDS:
            offline.chat(name, text, 10)
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        try:
            for turn in range(times):
                path = paths["two" if turn % 2 == 0 else "one"]
                found = swap(server, "load", lora_name="turn", lora_path=str(path), load_inplace=True)
                assert found.status_code == 200, found.text
        finally:
            over.set()
        for one in asking:
            one.result()
    assert not wrong and len(answered) > times / 5
    assert greedy(client, "turn", "yes", 10).choices[0].message.content == offline.chat("one", "yes", 10)[0]
    assert swap(server, "unload", lora_name="turn").status_code == 200
    assert idle(server)
    assert metric(server, "peftrun_adapters") == 2
