"""How near `action=plan`'s estimate of memory is to what a training takes, on the embedded model and a CPU.

Each point is a process of its own: `peftrun` with three real steps on rows that are all as long as they may be, then a few held-out rows
and the adapter saved; its highest resident memory (getrusage) stands beside what the plan says from files alone. Tokens are learned in
the answer, or, where it says so, all of them. Runs measure nothing before training, except in the last rows: the default command, cut to
three steps, whose estimate counts every row as long as the task allows.

    python benchmarks/memory_estimate.py [--at-once 2] [--measured memory_estimate.json] [--output benchmarks/results/memory_estimate.md]

With `--measured` nothing is run: the estimates are made anew for what that file holds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report

os.environ["HF_HUB_OFFLINE"] = "1"
SHAPES = [  # rows, tokens of a row, rank, checkpointed activations
    (1, 64, 4, False), (1, 64, 64, False), (1, 256, 4, False), (1, 256, 64, False), (4, 128, 16, False), (8, 64, 4, False),
    (8, 64, 64, False), (8, 256, 4, False), (8, 256, 64, False), (1, 64, 16, True), (4, 128, 16, True), (8, 256, 16, True),
]  # fmt: skip
SHORT = ["device=cpu", "trainer.max_steps=3", "trainer.warmup_steps=0"]
DTYPES = ("bfloat16", "float32")
ALL = [(1, 128, 16, False), (4, 128, 16, False)]  # every token learned
HEADER = ["dtype", "rows", "tokens", "rank", "checkpointing", "learned", "measured MB", "estimate MB", "error"]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "memory_estimate.md")
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--at-once", type=int, default=1)
    given, where = parser.parse_args(), report.machine()
    before = json.loads(given.measured.read_text()) if given.measured else {}
    where, points = before.get("machine") or where, before.get("points") or measured(given.at_once)
    points = [one | {"estimate": estimate(one)} for one in points]
    errors = [one["estimate"] / one["peak"] - 1 for one in points]
    table = report.table(HEADER, [cells(one) for one in points])
    mean, worst = statistics.mean(map(abs, errors)), max(errors, key=abs)
    said = f"Mean error {mean:.1%}, worst {worst:+.1%}, of {len(points)} points."
    parts = [" ".join(__doc__.split("\n\n")[1].split()), table, said]
    report.write(
        given.output, "Estimated and measured memory", parts, {"points": points, "mean": mean, "worst": worst}, where
    )


def measured(at_once: int) -> list[dict[str, Any]]:
    """Every point with its peak in bytes."""
    wanted = [point(dtype, shape, "completion") for dtype in DTYPES for shape in SHAPES]
    wanted += [point(dtype, shape, "all") for dtype in DTYPES for shape in ALL]
    wanted += [default(dtype) for dtype in DTYPES]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(at_once) as pool:
        files = {tokens: write_rows(Path(name), tokens) for tokens in (64, 128, 256)}
        return list(pool.map(lambda one: one | {"peak": peak(one, files, Path(name))}, wanted))


def write_rows(folder: Path, tokens: int) -> Path:
    """Rows of exactly so many tokens, no two alike."""
    from peftrun.composition.compose import compose_run
    from peftrun.composition.spec import build_spec
    from peftrun.models.base import load_tokenizer, resolve_base_dir
    from peftrun.tasks.messages import Conversation, make_message
    from peftrun.tasks.tokenization import Encoder

    spec = build_spec(compose_run(["model=embedded"]).cfg)
    encoder = Encoder(load_tokenizer(resolve_base_dir(spec.model), spec.model), spec.task)

    def length(text: str) -> int:
        prompt, (completion,) = encoder.answered(
            Conversation((make_message("user", text),)), [make_message("assistant", "yes")]
        )
        return len(prompt) + len(completion)

    words = next(count for count in range(tokens) if length(" ".join(["word"] * count) + " 100") == tokens)
    texts = [" ".join(["word"] * words) + f" {number}" for number in range(100, 200)]
    assert {length(text) for text in texts} == {tokens}
    file = folder / f"rows-{tokens}.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "completion": "yes"}) + "\n" for text in texts))
    return file


def point(dtype: str, shape: tuple[int, int, int, bool], learned: str) -> dict[str, Any]:
    """One training of the grid."""
    batch, tokens, rank, saving = shape
    overrides = [
        "task=instruction", f"task.max_length={tokens}", f"task.loss_on={learned}", "task.data.cache=false", "task.data.num_test_rows=8",
        "action.evaluate_before=false", f"trainer.per_device_train_batch_size={batch}", f"lora.r={rank}",
        f"trainer.gradient_checkpointing={str(saving).lower()}", f"device.dtype={dtype}", *SHORT,
    ]  # fmt: skip
    told = [dtype, batch, tokens, rank, "yes" if saving else "no", "all" if learned == "all" else "answer"]
    return {"shape": told, "tokens": tokens, "overrides": overrides}


def default(dtype: str) -> dict[str, Any]:
    """The default command."""
    overrides = [f"device.dtype={dtype}", "task.data.num_test_rows=32", *SHORT]
    return {"shape": [dtype, 4, "up to 128", 8, "no", "answer"], "tokens": None, "overrides": overrides}


def peak(one: dict[str, Any], files: dict[int, Path], folder: Path) -> int:
    """Bytes at the height of a process that trains so."""
    data = [f"task.data.path={files[one['tokens']]}"] if one["tokens"] else []
    with tempfile.TemporaryDirectory(dir=folder) as where:
        started = subprocess.Popen(
            [sys.executable, "-m", "peftrun", *one["overrides"], *data], cwd=where, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0, one
    print(one["shape"], usage.ru_maxrss, flush=True)
    return usage.ru_maxrss * 1024


def estimate(one: dict[str, Any]) -> float:
    """Bytes as the plan says; it looks for the data's file, not into it."""
    from peftrun.artifacts import base_files
    from peftrun.composition.compose import compose_run
    from peftrun.composition.spec import build_spec
    from peftrun.planning import memory

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        data = [f"task.data.path={file.name}"] if one["tokens"] else []
        spec = build_spec(compose_run([*one["overrides"], *data]).cfg)
    base = base_files.read_base_info(spec.model)
    assert base is not None
    return memory.estimate_memory(base, spec).peak


def cells(one: dict[str, Any]) -> list[str]:
    """One row."""
    found = one["estimate"] / one["peak"] - 1
    return [*map(str, one["shape"]), f"{one['peak'] / 1e6:.0f}", f"{one['estimate'] / 1e6:.0f}", f"{found:+.1%}"]


if __name__ == "__main__":
    main()
