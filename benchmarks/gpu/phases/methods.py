"""Every option of conf/lora/: three steps and a reload."""

import math
from typing import Any

from benchmarks.gpu import ROOT, runs
from benchmarks.gpu.context import Case
from benchmarks.gpu.phases.correct import FEW_STEPS

SECONDS = 400


def list_cases() -> dict[str, Case]:
    """Name → case."""
    return {file.stem: Case(30.0) for file in sorted((ROOT / "conf" / "lora").glob("*.yaml"))}


def run_case(case: str) -> dict[str, Any]:
    """Losses, and the proof of the reload."""
    overrides = [*runs.choose_training(steps=3), f"lora={case}", *FEW_STEPS.get(case, [])]
    folder = runs.run(*overrides, name=case).out_dir
    losses = runs.read_losses(folder)
    figures = {"ok": all(map(math.isfinite, losses)), "losses": " ".join(f"{loss:.3f}" for loss in losses)}
    return figures | ({} if case == "none" else runs.reload(folder))
