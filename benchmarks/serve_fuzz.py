"""Requests of every kind at random, many at once, against a real server: every answer is true, every refusal well formed, nothing is lost.

    python benchmarks/serve_fuzz.py --minutes 10

It serves a tiny Llama with three adapters itself, one of them DoRA. Adapters come, go and are replaced meanwhile. An answer, greedy or with a seed, must be
what the same request was answered before, whatever was computed beside it. Exit code 1 where anything was wrong.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).parent.parent / "tests"
WORDS = ("Is 3 even?", "dog", "yes no good bad", "The quick brown fox jumps over the lazy dog. " * 2, "¿spam? 😀")
NEVER_ENDS = {"2": -100}  # the tiny tokenizer's end token
WRONG: dict[str, list[Any]] = {
    "model": ["nobody", "", 3, None, ["one"]],
    "messages": [[], "hi", [{}], [{"role": "user"}], [{"role": "x", "content": "y"}], [[]], {"a": 1}],
    "temperature": [-1, 3, "hot", [], 1e400],
    "top_p": [0, 2, "x"],
    "n": [0, -1, 1.5, 10**9, "2"],
    "max_tokens": [0, -5, 1e9, 10**30, "9"],
    "stop": ["", ["a", ""], list("abcdef"), 5, {"a": 1}],
    "seed": [2**80, 0.5, "s"],
    "logit_bias": [{"x": 1}, {"99999999": 1}, {"5": 1000}, [1], {"-1": 1}],
    "logprobs": ["yes", 3.5],
    "top_logprobs": [21, -1],
    "presence_penalty": [9, "x"],
    "tools": [[{"type": "function"}], "x"],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": "x"}, {"other": 1}],
    "response_format": [{"type": "json_object"}],
    "no_such_field": [1, "x"],
}


def main() -> None:
    """Runs until the time is over and prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.3)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, adapters = made(Path(folder))
        process, url = served(Path(folder), base, adapters)
        try:
            run = Fuzz(url, adapters, options.seed)
            asyncio.run(run.whole(options.minutes * 60, options.at_once))
        finally:
            process.terminate()
            code = process.wait(60)
        errors = (Path(folder) / "stderr.txt").read_text()
    run.check(code == 0, f"exit code {code}")
    run.check("Traceback" not in errors, errors[-3000:])
    print(
        json.dumps(
            {"seconds": round(run.seconds), "seen": dict(sorted(run.seen.items())), "wrong": run.wrong[:10]}, indent=2
        )
    )
    sys.exit(bool(run.wrong))


def made(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny base and three adapters."""
    sys.path[:0] = [str(TESTS), str(TESTS / "serve")]
    import serving
    from conftest import build_llama

    base = build_llama(folder / "tiny-llama")
    return base, serving.adapters(base, folder, "one", "two", "dora")


def served(folder: Path, base: Path, adapters: dict[str, Path]) -> tuple[subprocess.Popen[str], str]:
    """A server of these, and its address."""
    given = ", ".join(f"{name}: {path}" for name, path in adapters.items())
    command = [
        sys.executable, "-m", "peftrun", "action=serve", "action.port=0", "model=pretrained", f"model.name_or_path={base}", "device=cpu",
        "device.dtype=float32", f"adapter={{{given}}}", "action.max_batch_size=8", "action.max_waiting=40",
    ]  # fmt: skip
    with (folder / "stderr.txt").open("w") as err:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, stderr=err, text=True
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+/v1", line)
    if not found:
        sys.exit((folder / "stderr.txt").read_text())
    return process, found[0]


class Fuzz:
    """What was asked, what came back, what was wrong."""

    def __init__(self, url: str, adapters: dict[str, Path], seed: int) -> None:
        self.url, self.adapters, self.draw = url, adapters, random.Random(seed)
        self.seen: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.known: dict[str, Any] = {}
        self.seconds, self.swapping = 0.0, asyncio.Lock()

    def check(self, right: bool, told: str) -> None:
        """Notes what is not as it must be."""
        if not right:
            self.wrong.append(told[:2000])

    async def whole(self, seconds: float, at_once: int) -> None:
        """Many workers, until the time is over; then the server must be at rest and well."""
        begin = time.monotonic()
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            await asyncio.gather(*(self.worker(client, begin + seconds) for _ in range(at_once)))
            self.seconds = time.monotonic() - begin
            await self.at_rest(client)

    async def worker(self, client: httpx.AsyncClient, end: float) -> None:
        """One kind of request after another."""
        kinds = [self.good] * 10 + [self.bad] * 4 + [self.garbage, self.leaves, self.leaves, self.swap]
        while time.monotonic() < end:
            kind = self.draw.choice(kinds)
            try:
                await kind(client)
            except (httpx.HTTPError, AssertionError, KeyError, ValueError) as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}"[:2000])

    def wish(self) -> tuple[str, dict[str, Any]]:
        """A request that can be answered, and its endpoint."""
        draw, text = self.draw, self.draw.choice(WORDS)
        sampled = draw.random() < 0.4
        body: dict[str, Any] = {
            "model": draw.choice(["base", *self.adapters]),
            "max_tokens": draw.choice([1, 2, 5, 20, 60]),
            "temperature": 1.0 if sampled else 0,
        }
        more: dict[str, Any] = {
            "seed": draw.randrange(3), "top_p": 0.9, "top_k": 20, "stop": draw.choice(["e", [" ", "a"]]), "presence_penalty": 1.0,
            "frequency_penalty": 0.5, "logit_bias": NEVER_ENDS, "n": 2, "user": "somebody",
        }  # fmt: skip
        body |= {key: value for key, value in more.items() if draw.random() < 0.2}
        if sampled:
            body["seed"] = draw.randrange(3)
        if draw.random() < 0.5:
            return "chat/completions", body | {"messages": [{"role": "user", "content": text}]}
        return "completions", body | {"prompt": text}

    async def good(self, client: httpx.AsyncClient) -> None:
        """Answered as before, whole or in pieces; or refused because all are busy."""
        route, body = self.wish()
        stream = self.draw.random() < 0.5
        sent = body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
        found = await client.post(f"{self.url}/{route}", json=sent)
        self.seen[f"good {found.status_code}"] += 1
        if found.status_code == 429:
            self.check("retry-after" in found.headers, "429 without Retry-After")
            return
        self.check(found.status_code == 200, found.text)
        texts, usage = streamed(found.text) if stream else whole(found.json())
        self.check(usage["completion_tokens"] <= body["max_tokens"] * body.get("n", 1), f"{usage} {body}")
        key = json.dumps([route, body], sort_keys=True)
        before = self.known.setdefault(key, texts)
        self.check(before == texts, f"{key}: {before} then {texts}")

    async def bad(self, client: httpx.AsyncClient) -> None:
        """One field wrong: refused with 4xx in OpenAI's shape."""
        route, body = self.wish()
        field = self.draw.choice([key for key in WRONG if key in body or self.draw.random() < 0.3] or ["model"])
        if field == "logprobs" or (field == "messages" and not route.startswith("chat")):
            field = "temperature"
        body[field] = value = self.draw.choice(WRONG[field])
        content = json.dumps(body)
        found = await client.post(f"{self.url}/{route}", content=content, headers={"Content-Type": "application/json"})
        self.seen[f"bad {found.status_code}"] += 1
        harmless = value is None and field not in ("model",)
        self.check(
            harmless or 400 <= found.status_code < 500, f"{field}={value}: {found.status_code} {found.text[:300]}"
        )
        self.check(harmless or set(found.json()["error"]) == {"message", "type", "param", "code"}, found.text[:300])

    async def garbage(self, client: httpx.AsyncClient) -> None:
        """No JSON, no such route, no such method."""
        body = bytes(self.draw.randrange(256) for _ in range(self.draw.randrange(200)))
        method, route = (
            self.draw.choice(["GET", "POST", "PUT", "DELETE"]),
            self.draw.choice(["completions", "x", "models/..%2f"]),
        )
        found = await client.request(
            method, f"{self.url}/{route}", content=body, headers={"Content-Type": "application/json"}
        )
        self.seen[f"garbage {found.status_code}"] += 1
        self.check(400 <= found.status_code < 500, f"{method} {route}: {found.status_code} {found.text[:300]}")

    async def leaves(self, client: httpx.AsyncClient) -> None:
        """A client that goes away before the answer, or in the middle of it."""
        route, body = self.wish()
        body |= {"max_tokens": 150, "stream": self.draw.random() < 0.7, "logit_bias": NEVER_ENDS}
        try:
            async with client.stream(
                "POST", f"{self.url}/{route}", json=body, timeout=self.draw.choice([0.05, 0.3, 2])
            ) as found:
                async for _ in found.aiter_lines():
                    if self.draw.random() < 0.3:
                        break
            self.seen["left in the middle"] += 1
        except httpx.TimeoutException:
            self.seen["left before"] += 1

    async def swap(self, client: httpx.AsyncClient) -> None:
        """An adapter is loaded anew in place, or a name comes and goes."""
        name = self.draw.choice(list(self.adapters))
        async with self.swapping:
            body = {"lora_name": name, "lora_path": str(self.adapters[name]), "load_inplace": True}
            if self.draw.random() < 0.5:
                body = {"lora_name": "guest", "lora_path": str(self.adapters[name])}
                gone = await client.post(f"{self.url}/unload_lora_adapter", json={"lora_name": "guest"})
                self.check(gone.status_code in (200, 404), gone.text)
            found = await client.post(f"{self.url}/load_lora_adapter", json=body)
        self.seen[f"swap {found.status_code}"] += 1
        self.check(found.status_code == 200, found.text)

    async def at_rest(self, client: httpx.AsyncClient) -> None:
        """Nothing runs or waits any more, and the server is well."""
        root = self.url.removesuffix("/v1")
        for _ in range(600):
            text = (await client.get(f"{root}/metrics")).text
            if "peftrun_requests_running 0.0" in text and "peftrun_requests_waiting 0.0" in text:
                break
            await asyncio.sleep(0.1)
        else:
            self.wrong.append("rows are left over")
        health = await client.get(f"{root}/health")
        self.check(health.json() == {"status": "ok"}, health.text)
        for family in ("prompt_tokens", "generated_tokens"):
            self.seen[family] = round(
                sum(float(one) for one in re.findall(rf"^peftrun_{family}_total{{.*}} (\S+)$", text, re.M))
            )


def whole(reply: dict[str, Any]) -> tuple[list[str], dict[str, int]]:
    """Texts of a reply, and its usage."""
    choices = sorted(reply["choices"], key=lambda one: one["index"])
    return [one["text"] if "text" in one else one["message"]["content"] for one in choices], reply["usage"]


def streamed(text: str) -> tuple[list[str], dict[str, int]]:
    """The same of a reply in pieces; each answer ends once, the usage comes last but for the end mark."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]", text[-500:]
    chunks = [json.loads(line) for line in lines[:-1]]
    found: dict[int, str] = {}
    ends: collections.Counter[int] = collections.Counter()
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        added = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        found[choice["index"]] = found.get(choice["index"], "") + added
        ends[choice["index"]] += choice["finish_reason"] is not None
    assert set(ends.values()) == {1}, text[-500:]
    return [found[index] for index in sorted(found)], chunks[-1]["usage"]


if __name__ == "__main__":
    main()
