"""An adapter is put into a loaded model of 1.2 billion parameters: seconds of peftrun's hot add, PEFT's load and its swap in place, a bare read.

Each contestant once a turn, in one process and on one model; rank 16 on every linear layer. peftrun's time includes the proof of the load.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks import report
from benchmarks.gpu import runs, tables
from benchmarks.gpu.context import DEVICE, HALF, TINY, Case
from benchmarks.gpu.inputs import get_adapter, get_base

SECONDS = 150
TURNS = 3 if TINY else 20


def list_cases() -> dict[str, Case]:
    """Name → case."""
    return {"turns": Case(120.0, True)}


def run_case(case: str) -> dict[str, Any]:
    """Seconds of each contestant, min, median and max; whether the logits are the same whichever way the adapter came."""
    contestants, compute_logits = load_contestants()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(TURNS + 1):  # the first does not count
        for name, swap in contestants.items():
            runs.synchronize()
            begin = time.perf_counter()
            swap()
            runs.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    logits = []
    for name in ("peftrun", "peft_load", "peft_hotswap"):
        contestants[name]()
        logits.append(compute_logits())  # (tokens, vocabulary)
    apart = max(float((other - logits[0]).abs().max()) for other in logits[1:])
    figures = {name: report.spread(each[1:]) for name, each in seconds.items()}
    return {"ok": apart == 0.0, "logits_apart": apart, "turns": TURNS, **figures}


def load_contestants() -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Name → swap, which leaves its adapter active; and what computes the model's logits on the probes."""
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter
    from safetensors.torch import load_file

    import peftrun
    from peftrun.adapters import hot_swap, probes
    from peftrun.artifacts import adapter_folder
    from peftrun.models import base as base_models
    from peftrun.models import device

    spec = peftrun.load("action=serve", *runs.choose_base(get_base("1b"), HALF))
    base = base_models.load_base(spec.model, device.resolve_device(spec.device))
    folders = [get_adapter("1b", f"a{number}", seed=number) for number in range(2)]
    plain = probes.compute_probe_logits(base.model, base.tokenizer)
    net = PeftModel.from_pretrained(base.model, folders[0], adapter_name="resident").requires_grad_(False).eval()
    adapter = replace(adapter_folder.resolve_adapter(str(folders[1]), "hot"), name="hot")

    def hot_add() -> None:
        hot_swap.hot_remove(net, "hot")
        for _ in hot_swap.hot_add(base, net, adapter, plain):
            pass
        net.set_adapter("hot")

    def load() -> None:
        if "loaded" in net.peft_config:
            net.delete_adapter("loaded")
        net.load_adapter(str(folders[1]), "loaded", torch_device=DEVICE)
        net.set_adapter("loaded")

    def swap_in_place() -> None:
        net.set_adapter("resident")
        hotswap_adapter(net, str(folders[1]), "resident", torch_device=DEVICE)

    def read() -> None:
        load_file(folders[1] / "adapter_model.safetensors", device=DEVICE)

    swaps = {"peftrun": hot_add, "peft_load": load, "peft_hotswap": swap_in_place, "read": read}
    return swaps, lambda: probes.compute_probe_logits(net, base.tokenizer)


def build_tables(results: dict[str, Any]) -> list[str]:
    """A line a contestant."""
    figures = results.get("turns", {})
    spreads = {name: spread for name, spread in figures.items() if isinstance(spread, dict)}
    rows = [[name, report.cells(spread, 1, 1000)] for name, spread in spreads.items()]
    equal = f"Largest distance of a logit between the ways: {tables.format_value(figures.get('logits_apart'))}."
    return [report.table(["way", "ms: median (min–max)"], rows), equal] if rows else []
