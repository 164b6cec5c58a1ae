"""Versions, the card and its two ceilings; training, reload proof, merge proof and an answer, as a user gets them."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT, flops, machine, runs
from benchmarks.gpu.context import DEVICE, GIB, MIB, TINY, WORK, Case
from benchmarks.gpu.inputs import get_base
from benchmarks.gpu.processes import execute, run_peftrun

SECONDS = 150
NAMES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "triton",
    "liger-kernel",
    "bitsandbytes",
    "flash-attn",
)


def list_cases() -> dict[str, Case]:
    """Name → case."""
    limits = {
        "versions": 60,
        "gpu": 20,
        "ceilings": 30,
        "train": 60,
        "reload": 40,
        "merge": 40,
        "default": 30,
        "generate": 30,
    }
    return {name: Case(limit) for name, limit in limits.items()}


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": check_versions, "gpu": describe_gpu, "ceilings": measure_ceilings, "train": train, "reload": reload, "merge": merge,
        "default": train_by_default, "generate": generate,
    }  # fmt: skip
    return cases[case]()


def check_versions() -> dict[str, Any]:
    """`ok`: the command works, and its code is this checkout's."""
    import peftrun

    told = execute([sys.executable, "-m", "peftrun", "--version"])
    from_checkout = Path(peftrun.__file__).parents[1] == ROOT
    installed = {one.name.lower(): one.version for one in distributions() if one.name}
    versions = {name: installed[name] for name in NAMES if name in installed}
    return {"ok": told["code"] == 0 and from_checkout, "code_from_checkout": from_checkout, **versions}


def describe_gpu() -> dict[str, Any]:
    """Cores, disk, card, compiler (torch_compile and Triton need one)."""
    figures = {"cores": os.cpu_count(), "disk_free_gib": round(shutil.disk_usage(WORK).free / GIB)}
    return figures | (machine.describe_card() or {}) | {"cc": shutil.which("gcc") or shutil.which("cc")}


def measure_ceilings() -> dict[str, Any]:
    """TFLOP/s of a bfloat16 matrix product on random data, and GB/s of a copy within the memory."""
    import torch

    size, times = (256, 3) if TINY else (8192, 20)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))  # (8192, 8192)
    product = measure_median(lambda: a @ b, times)
    source = torch.empty(1 << (20 if TINY else 32), dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    copy = measure_median(lambda: target.copy_(source), times)
    figures = {"matmul_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_second": 2 * source.numel() / copy / 1e9}
    flops.CEILINGS.write_text(json.dumps(figures))
    return figures


def measure_median(work: Callable[[], Any], times: int, warm_up: int = 3) -> float:
    """Median seconds of `work`, after a few that do not count."""
    seconds = []
    for number in range(times + warm_up):
        runs.synchronize()
        begin = time.perf_counter()
        work()
        runs.synchronize()
        if number >= warm_up:
            seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[len(seconds) // 2]


def train() -> dict[str, Any]:
    """Three steps by the command line."""
    folder = WORK / "first"
    run_peftrun(*runs.choose_training(steps=3), f"hydra.run.dir={folder}")
    record, losses = runs.read_record(folder), runs.read_losses(folder)
    return {
        "ok": record["status"] == "completed" and all(map(math.isfinite, losses)),
        "losses": " ".join(f"{loss:.4f}" for loss in losses),
        "device": record["device"][:50],
        "not_deterministic": runs.read_nondeterministic(folder),
        "peak_gpu_mib": record["memory"].get("peak_gpu_bytes", 0) // MIB,
    }


def reload() -> dict[str, Any]:
    """The proof that the adapter is the one that was trained."""
    told = run_peftrun(*runs.choose_inputs(), "action=reload", f"adapter={WORK / 'first'}")
    return {"proof": find_lines(told["text"], "equals", "differs", "landed")}


def merge() -> dict[str, Any]:
    """The proof that the merged model answers as base model and adapter do."""
    merged = f"action.output_dir={WORK / 'first-merged'}"
    told = run_peftrun(*runs.choose_inputs(), "action=merge", f"adapter={WORK / 'first'}", merged)
    return {"proof": find_lines(told["text"], "equals")}


def find_lines(text: str, *words: str) -> str:
    """The lines of a command's output that hold one of the words."""
    return " / ".join(line.strip() for line in text.splitlines() if any(word in line for word in words))


def generate() -> dict[str, Any]:
    """An answer."""
    asked = ['action.prompt="Is 4 even?"', "action.max_new_tokens=8"]
    runs.run(*runs.choose_base(get_base("nano")), "action=generate", f"adapter={WORK / 'first'}", *asked, name="answer")
    return {}


def train_by_default() -> dict[str, Any]:
    """device=auto, dtype=auto: what a user of a GPU gets without typing anything."""
    done = runs.run(*runs.choose_training(steps=4), "device=auto", "device.dtype=auto")
    return runs.check_losses(done.out_dir) | {"device": done.facts["device"][:60]}
