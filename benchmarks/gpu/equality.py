"""Comparisons on tiny models that stand beside the figures of speed: what is faster must compute the same."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import runs
from benchmarks.gpu.context import WORK
from benchmarks.gpu.inputs import get_base
from benchmarks.gpu.runs import choose_base, choose_training, run

CELLS = ((4, "1e-3", 0), (8, "1e-3", 1), (8, "5e-3", 0), (16, "2e-3", 2))  # rank, learning rate, seed
# Losses and trained tensors of runs that should be equal. In bfloat16 cells differ as much as lone runs of other batch sizes do.
LIMITS = {"float32": (1e-4, 1e-2), "bfloat16": (0.1, 0.5)}


def compare_joint_cells(dtype: str = "float32") -> dict[str, Any]:
    """Four cells trained together against each alone."""
    cells = [
        [*choose_training(dtype), f"lora.r={rank}", f"trainer.learning_rate={rate}", f"seed={seed}"]
        for rank, rate, seed in CELLS
    ]
    begin = time.perf_counter()
    folders = train_jointly(cells)
    joint = time.perf_counter() - begin
    begin = time.perf_counter()
    alone = [run(*cell, name="alone").out_dir for cell in cells]
    figures = {"joint_s": joint, "alone_s": time.perf_counter() - begin}
    pairs = list(zip(folders, alone, strict=True))
    losses = max(runs.compare_losses(runs.read_losses(a), runs.read_losses(b)) for a, b in pairs)
    return judge(losses, max(runs.compare_runs(a, b) for a, b in pairs), dtype) | figures


def train_jointly(cells: list[list[str]]) -> list[Path]:
    """Folders of cells, each given by its overrides, that were trained in one batch. Raises: RuntimeError: one failed."""
    import peftrun
    from peftrun.planning.joint_memory import Limits
    from peftrun.runs import execute

    folders = [runs.new_folder("joint") for _ in cells]
    execute.execute_jointly([peftrun.load(*cell) for cell in cells], folders, Limits(cells=len(cells)))
    records = [runs.read_record(folder) for folder in folders]
    errors = [record.get("error") for record in records if record["status"] != "completed"]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(cells)} cells failed: {errors[0]}")
    return folders


def judge(losses: float, tensors: float, dtype: str = "float32") -> dict[str, Any]:
    """Both distances, and whether they are within `LIMITS`."""
    most_losses, most_tensors = LIMITS[dtype]
    return {
        "ok": losses < most_losses and tensors < most_tensors,
        "losses_apart": losses,
        "tensors_apart": tensors,
    }


def compare_mixed_answers() -> dict[str, Any]:
    """Rows of two adapters and of the base model in one batch: each answer as its adapter gives it alone."""
    adapters = {"one": runs.run_reference(), "two": runs.run_once("two", *choose_training(), "seed=1", "lora.r=4")}
    names, texts = [*adapters, "base"], [f"Is {number} even?" for number in range(6)]
    rows = WORK / "prompts.jsonl"
    lines = [{"prompt": text, "adapter": names[number % 3]} for number, text in enumerate(texts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixed = answer(rows, f"adapter={{one: {adapters['one']}, two: {adapters['two']}}}")
    alone = {}
    for number, name in enumerate(names):
        file = WORK / f"prompts-{name}.txt"
        file.write_text("".join(f"{text}\n" for text in texts[number::3]))
        alone[name] = answer(file, *([f"adapter={adapters[name]}"] if name in adapters else []))
    expected = [alone[names[number % 3]][number // 3] for number in range(len(texts))]
    same = sum(a == b for a, b in zip(mixed, expected, strict=True))
    return {
        "ok": same == len(texts),
        "equal": f"{same} of {len(texts)}",
        "distinct_answers": len(set(mixed)),
    }


def answer(prompts: Path, *overrides: str) -> list[str]:
    """Greedy answers of at most 12 tokens."""
    asked = ["action=generate", f"action.prompts_file={prompts}", "action.max_new_tokens=12"]
    folder = run(*choose_base(get_base("nano")), *asked, *overrides, name="answers").out_dir
    return [json.loads(line)["answer"] for line in (folder / "generations.jsonl").read_text().splitlines()]
