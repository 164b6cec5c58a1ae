"""A LoRA merged into the large base model (15 GB), whole processes, imports included: peftrun, with and without its proof; PEFT; a plain copy."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import tables
from benchmarks.gpu.context import DEVICE, GIB, HALF, PATIENCE, WORK, Case, group_rounds, interleave
from benchmarks.gpu.inputs import count_bytes, get_adapter, get_base
from benchmarks.gpu.processes import run_command
from benchmarks.gpu.runs import choose_base

SECONDS = 700
MERGED = WORK / "merged"


def list_cases() -> dict[str, Case]:
    """Name → case."""
    limits = {"cp": 60.0, "peftrun": 60.0, "peft_gpu": 90.0, "peft_cpu": 90.0, "peftrun_proved": 120.0}
    return {"base": Case(120.0), **interleave({name: Case(seconds) for name, seconds in limits.items()})}


def run_case(case: str) -> dict[str, Any]:
    """The figures of one case."""
    base, adapter = get_base("8b"), get_adapter("8b", "merge")
    name = case.partition("@")[0]
    if name == "base":
        return {"gb": count_bytes(base) / 1e9}
    shutil.rmtree(MERGED, ignore_errors=True)
    os.sync()  # what was left unwritten is not this one's
    try:
        told = run_command(*build_command(name, base, adapter), limit=115 * PATIENCE)
        gpu = re.findall(r"peak_gpu=([\d.]+)", told["text"])
        proof = " / ".join(line.strip() for line in told["text"].splitlines() if "equals" in line)
        figures = {
            "seconds": told["seconds"],
            "peak_rss_gib": told["rss"] / GIB,
            "peak_gpu_gib": float(gpu[-1]) if gpu else None,
            "proof": proof,
        }
        return figures | (count_differing(base, adapter) if name == "peftrun" else {})
    finally:
        shutil.rmtree(MERGED, ignore_errors=True)


def build_command(name: str, base: Path, adapter: Path) -> list[Any]:
    """What is timed."""
    if name == "cp":
        return ["cp", "-r", base, MERGED]
    if name.startswith("peft_"):
        return [
            sys.executable,
            "-m",
            "benchmarks.gpu.peft_merge",
            "cpu" if name == "peft_cpu" else DEVICE,
            base,
            adapter,
            MERGED,
        ]
    merge = ["action=merge", f"adapter={adapter}", f"action.output_dir={MERGED}", "action.num_eval_rows=0"]
    proof = [] if name == "peftrun_proved" else ["action.verify=false"]
    return [sys.executable, "-m", "peftrun", *choose_base(base, HALF), *merge, *proof]


def count_differing(base: Path, adapter: Path) -> dict[str, Any]:
    """How many merged tensors are not W + 2 B A, computed in float32 and rounded once; of layers 0 and 1 and what is in no layer."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    lora = load_file(adapter / "adapter_model.safetensors")
    differing = compared = 0
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as before, safe_open(MERGED / file.name, "pt") as after:
            for key in before.keys():  # noqa: SIM118 (no mapping)
                if "layers." in key and int(key.split("layers.")[1].split(".")[0]) > 1:
                    continue
                path, value = f"base_model.model.{key.removesuffix('.weight')}", before.get_tensor(key)
                if f"{path}.lora_A.weight" in lora:
                    down, up = (lora[f"{path}.lora_{side}.weight"].float() for side in "AB")  # (r, in), (out, r)
                    value = (value.float() + up @ down * 2.0).to(value.dtype)
                compared, differing = compared + 1, differing + (not torch.equal(value, after.get_tensor(key)))
    return {"ok": differing == 0, "differing": f"{differing} of {compared}"}


def build_tables(results: dict[str, Any]) -> list[str]:
    """Seconds and memory of each way, and the ratio to a copy in the same round."""
    grouped, rows = group_rounds(results), []
    for name, rounds in grouped.items():
        if not rounds:
            continue
        copies = grouped.get("cp", {})
        common = [number for number in rounds if number in copies]
        ratio = (
            report.cells(report.ratios(*([found[n]["seconds"] for n in common] for found in (rounds, copies))))
            if common
            else "-"
        )
        figures = list(rounds.values())[-1]
        rest = [tables.format_value(figures.get(key)) for key in ("peak_rss_gib", "peak_gpu_gib", "differing", "proof")]
        rows.append([name, report.cells(report.spread(one["seconds"] for one in rounds.values()), 1), ratio, *rest])
    gb = tables.format_value(results.get("base", {}).get("gb"))
    header = [
        "way",
        "s",
        "÷ cp",
        "peak RSS, GiB",
        "peak GPU, GiB",
        "tensors that are not the sum rounded once",
        "proof",
    ]
    return [f"{gb} GB.", report.table(header, rows)]
