"""Requests for several adapters of 1.2 billion parameters: the engine's mixed batches, batches of one adapter at a time, one by one; and over HTTP.

Requests and contestants are those of benchmarks/serve.py; the end token is off, so that answers have the length asked for.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

from benchmarks import report
from benchmarks.gpu import ROOT, equality, runs, tables
from benchmarks.gpu.context import HALF, PATIENCE, TINY, WORK, Case, group_rounds, interleave, need_package
from benchmarks.gpu.inputs import get_adapter, get_base
from benchmarks.gpu.worker import free_memory

SECONDS = 250
ADAPTERS, REQUESTS, ANSWER, BATCH = (2, 6, (4, 8), 4) if TINY else (8, 64, (16, 48), 16)
ONE_BY_ONE = 3 if TINY else 12  # requests that are answered one by one: a share, since it takes long
LOADED: dict[str, Any] = {}  # base model and adapters of this worker's cases


def list_cases() -> dict[str, Case]:
    """Name → case; the server last, in a process of its own, when this one's memory is free."""
    turns = interleave({"mixed": Case(60.0), "per_adapter": Case(60.0), "one_by_one": Case(60.0)})
    return {"equal": Case(60.0), "load": Case(80.0), **turns, "server": Case(90.0)}


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    need_package("fastapi", "pip install 'peftrun[serve]'")
    name = case.partition("@")[0]
    if name == "equal":
        return equality.compare_mixed_answers()
    if name == "server":
        LOADED.clear()
        free_memory()
        return serve_http()
    sys.path.append(str(ROOT / "benchmarks"))  # its modules import each other by name
    from benchmarks import serve

    asked = serve.requests(ADAPTERS, REQUESTS, ANSWER)
    if not LOADED:
        LOADED["base"], LOADED["net"] = load_adapters(serve)
        warm_up = [(adapter, text, 2) for adapter, text, _ in asked[:4]]
        answer("mixed", serve, warm_up)
        answer("one_by_one", serve, warm_up)
    if name == "load":
        return {"requests": REQUESTS, "adapters": ADAPTERS}
    asked = asked[:ONE_BY_ONE] if name == "one_by_one" else asked
    runs.synchronize()
    begin = time.perf_counter()
    answer(name, serve, asked)
    runs.synchronize()
    seconds, tokens = time.perf_counter() - begin, sum(count for _, _, count in asked)
    figures = {"answers_s": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "requests": len(asked)}
    return figures | {"peak_gib": runs.get_peak_gib()}


def load_adapters(serve: Any) -> tuple[Any, Any]:
    """Base model and PEFT model, as benchmarks/serve.py loads them."""
    return serve.loaded(HALF, ADAPTERS, 16, runs.choose_base(get_base("1b"), HALF))


def answer(name: str, serve: Any, asked: list[Any]) -> None:
    """All requests, in one of three ways."""
    base, net = LOADED["base"], LOADED["net"]
    if name == "mixed":
        serve.continuous(base, net, asked, BATCH, runs.choose_base(get_base("1b"), HALF))
    elif name == "per_adapter":
        serve.per_adapter(base, net, asked, BATCH)
    else:
        serve.one_by_one(base, net, asked)


def serve_http() -> dict[str, Any]:
    """`peftrun action=serve` in a process of its own: twelve requests at once, and how it ends."""
    adapters = ", ".join(f"a{number}: {get_adapter('1b', f'a{number}', seed=number)}" for number in range(ADAPTERS))
    log, port = WORK / "server.txt", 18000 + os.getpid() % 2000
    overrides = [
        *runs.choose_base(get_base("1b"), HALF),
        "action=serve",
        f"adapter={{{adapters}}}",
        f"action.port={port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "peftrun", *overrides], cwd=WORK, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )  # fmt: skip
    try:
        begin = time.perf_counter()
        wait_for_server(process, port, begin + 60 * PATIENCE)
        ready = time.perf_counter() - begin
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            tokens = sum(pool.map(lambda number: request_answer(port, number), range(12)))
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGINT)
        code = process.wait(20 * PATIENCE)
        figures = {
            "answers_s": seconds,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "requests": 12,
            "ready_s": ready,
        }
        return figures | {"exit_code": code}
    finally:
        process.kill()
        process.wait()
        print(log.read_text(errors="replace")[-3000:])


def wait_for_server(process: Any, port: int, until: float) -> None:
    """Returns when it answers. Raises: RuntimeError: it ended, or time did."""
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).read()
            return
        if process.poll() is not None or time.perf_counter() > until:
            raise RuntimeError(f"the server does not answer (exit code {process.poll()})")
        time.sleep(0.2)


def request_answer(port: int, number: int) -> int:
    """Tokens of one greedy answer."""
    body = {"model": f"a{number % ADAPTERS}", "prompt": f"number {number} says", "max_tokens": 16, "temperature": 0}
    address = f"http://127.0.0.1:{port}/v1/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    reply = json.loads(urllib.request.urlopen(request, timeout=30 * PATIENCE).read())
    return int(reply["usage"]["completion_tokens"])


def build_tables(results: dict[str, Any]) -> list[str]:
    """Tokens written a second, each way."""
    rows = []
    for name, rounds in group_rounds(results).items():
        if rounds:
            rates = report.spread(figures["tokens_per_second"] for figures in rounds.values())
            figures = list(rounds.values())[-1]
            rows.append(
                [
                    name,
                    figures["requests"],
                    figures["tokens"],
                    report.cells(rates, 1),
                    tables.format_value(figures["peak_gib"]),
                ]
            )
    others = {name: results[name] for name in ("equal", "server") if name in results}
    header = ["way", "requests", "tokens", "tokens/s: median (min–max)", "peak GiB"]
    return [report.table(header, rows), "Mixed answers, compared with each adapter's alone, on a tiny model; and the server over HTTP:",
            tables.build_case_table(others)]  # fmt: skip
