"""Requests for several adapters of one base: continuous mixed batches against switching adapters.

Contestants, on the same loaded base and adapters, in one process, in every round:

- continuous: the engine of action=serve, all requests handed to it at once (no HTTP);
- one_by_one: PEFT alone, requests in the order they came, `set_adapter` and `generate` for each;
- per_adapter: PEFT alone, knowing all requests beforehand: those of each adapter together, in padded batches of the same size.

The end token is switched off, so that every answer has exactly the tokens that were asked for.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report

QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
WORDS = [
    "the",
    "server",
    "reads",
    "a",
    "question",
    "about",
    "prizes",
    "and",
    "numbers",
    "and",
    "says",
    "whether",
    "it",
    "is",
    "spam",
    "or",
    "ham",
    "in",
    "a",
    "few",
    "short",
    "words",
]
Request = tuple[str, str, int]  # adapter, prompt, tokens to write


def main() -> None:
    """Runs all contestants in every round and writes results/serve.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs=2, default=(16, 48), help="least and most tokens of an answer")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "serve.md")
    options = parser.parse_args()
    os.environ.update(QUIET)
    where, runs = report.machine(), {}
    asked = requests(options.adapters, options.requests, options.tokens)
    for dtype in options.dtype:
        runs[dtype] = measured(dtype, asked, options)
    tell(runs, asked, options, where)


def requests(adapters: int, count: int, tokens: tuple[int, int]) -> list[Request]:
    """Prompts of 8 to 60 words for adapters at random."""
    draw = random.Random(0)
    return [
        (f"a{draw.randrange(adapters)}", " ".join(draw.choices(WORDS, k=draw.randrange(8, 60))), draw.randint(*tokens))
        for _ in range(count)
    ]


def measured(dtype: str, asked: list[Request], options: Any) -> list[dict[str, float]]:
    """Seconds of each contestant, in every round."""
    base, net = loaded(dtype, options.adapters, options.rank)
    contestants: dict[str, Callable[[], None]] = {
        "continuous": lambda: continuous(base, net, asked, options.batch),
        "one_by_one": lambda: one_by_one(base, net, asked),
        "per_adapter": lambda: per_adapter(base, net, asked, options.batch),
    }
    warm = [(name, text, 2) for name, text, _ in asked[:2]]
    continuous(base, net, warm, options.batch)
    one_by_one(base, net, warm)
    rounds = []
    for number in range(options.rounds):
        rounds.append({})
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            rounds[-1][name] = time.perf_counter() - begin
            print(f"{dtype} round {number + 1} {name}: {rounds[-1][name]:.1f} s", file=sys.stderr)
    return rounds


def loaded(dtype: str, adapters: int, rank: int, chosen: Sequence[str] = ("device=cpu",)) -> tuple[Any, Any]:
    """A base model, the embedded one unless `chosen` overrides it, with adapters that were started at random, B too."""
    import torch
    from peft import LoraConfig, get_peft_model

    import peftrun
    from peftrun.models import base as base_models
    from peftrun.models import device

    spec = peftrun.load("action=serve", *chosen, f"device.dtype={dtype}")
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    net = get_peft_model(base.model, config, adapter_name="a0")
    for number in range(1, adapters):
        net.add_adapter(f"a{number}", config)
    base.model.generation_config.eos_token_id = None
    base.tokenizer.eos_token = None
    return base, net.requires_grad_(False).eval()


def continuous(base: Any, net: Any, asked: list[Request], batch: int, chosen: Sequence[str] = ()) -> None:
    """The engine, all requests at once. `chosen`: overrides that the base model was loaded with."""
    import peftrun
    from peftrun.serving.adapter_registry import AdapterRegistry, AdapterVersion
    from peftrun.serving.batch import ModelRunner
    from peftrun.serving.engine import Engine
    from peftrun.serving.metrics import Metrics
    from peftrun.serving.requests import CompletionRequest
    from peftrun.serving.service import Service

    versions = AdapterRegistry(base.name, [AdapterVersion(name, name) for name in net.peft_config])
    watch = Metrics()
    spec = peftrun.load("action=serve", *chosen)
    engine = Engine(ModelRunner(net, base.tokenizer.pad_token_id), versions, watch, batch, len(asked))
    action: Any = spec.action
    service = Service(base, engine, versions, watch, action, task=spec.task)
    service.ends = frozenset()  # every answer is as long as it may be
    engine.start()

    async def ask(name: str, text: str, tokens: int) -> None:
        wish = CompletionRequest(model=name, prompt=text, max_tokens=tokens, temperature=0.0)
        reply = await service.collect_response(*await service.submit_request(wish))
        assert reply["usage"]["completion_tokens"] == tokens

    async def everything() -> None:
        await asyncio.gather(*(ask(*one) for one in asked))

    try:
        asyncio.run(everything())
    finally:
        engine.close()
        service.close()


def one_by_one(base: Any, net: Any, asked: list[Request]) -> None:
    """Each request as it comes."""
    for name, text, tokens in asked:
        net.set_adapter(name)
        generate(base, net, [text], tokens)


def per_adapter(base: Any, net: Any, asked: list[Request], batch: int) -> None:
    """Those of an adapter together; a batch writes as many tokens as its longest answer."""
    for name in dict.fromkeys(name for name, _, _ in asked):
        own = [(text, tokens) for other, text, tokens in asked if other == name]
        net.set_adapter(name)
        for start in range(0, len(own), batch):
            rows = own[start : start + batch]
            generate(base, net, [text for text, _ in rows], max(tokens for _, tokens in rows))


def generate(base: Any, net: Any, texts: list[str], tokens: int) -> None:
    """Greedy answers of exactly so many tokens."""
    import torch

    given = base.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(net.device)
    with torch.inference_mode():
        out = net.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=base.tokenizer.pad_token_id)
    assert out.shape[1] == given["input_ids"].shape[1] + tokens


def tell(runs: dict[str, list[dict[str, float]]], asked: list[Request], options: Any, where: dict[str, Any]) -> None:
    """Writes the tables."""
    tokens = sum(one for _, _, one in asked)
    names = list(next(iter(runs.values()))[0])
    ratios = {
        dtype: {
            name: report.ratios([one[name] for one in found], [one["continuous"] for one in found])
            for name in names
            if name != "continuous"
        }
        for dtype, found in runs.items()
    }
    rates = {
        dtype: {name: report.spread(tokens / one[name] for one in found) for name in names}
        for dtype, found in runs.items()
    }
    parts = [
        f"{len(asked)} greedy requests at random for {options.adapters} LoRA adapters (r={options.rank}, every linear layer) of the embedded model: "
        f"prompts of 8–60 words, answers of {options.tokens[0]}–{options.tokens[1]} tokens, {tokens} in all; at most {options.batch} rows at once; "
        f"median (min–max) of {options.rounds} interleaved rounds. Above 1 is in favour of continuous batches.",
        report.table(
            ["time ÷ continuous", *runs],
            [[name, *(report.cells(ratios[dtype][name]) for dtype in runs)] for name in names if name != "continuous"],
        ),
        report.table(
            ["tokens written a second", *runs],
            [[name, *(report.cells(rates[dtype][name], 1) for dtype in runs)] for name in names],
        ),
    ]
    figures = {
        "requests": len(asked),
        "tokens": tokens,
        "ratios_to_continuous": ratios,
        "tokens_a_second": rates,
        "runs": runs,
    }
    report.write(options.output, "Several adapters of one base, served", parts, figures, where)


if __name__ == "__main__":
    main()
