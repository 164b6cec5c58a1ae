"""What each knob of memory and speed costs and saves: seconds a step and peak memory of the default training, off and on.

Each row is the default task on the embedded model with one knob turned, a process of its own; all rows in one run, the plain one
first and last. Steps are timed from the second log row on, so that warming up is left out; `torch_compile` compiles again whenever a
batch is of another length, and pays for it in the steps that are timed. Activation offloading and Liger kernels are for GPUs, and refused here.

    python benchmarks/knobs.py [--steps 12] [--output benchmarks/results/knobs.md]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

KNOBS = {
    "plain": [],
    "gradient_checkpointing": ["trainer.gradient_checkpointing=true"],
    "batch 1, accumulated 4 times": ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=4"],
    "packing": ["trainer.packing=true"],
    "padding_free": ["trainer.padding_free=true"],
    "group_by_length": ["trainer.train_sampling_strategy=group_by_length"],
    "attn_implementation=eager": ["model.attn_implementation=eager"],
    "optim=adamw_8bit": ["trainer.optim=adamw_8bit"],
    "quantization=nf4": ["model.quantization=nf4"],
    "dtype=float32": ["device.dtype=float32"],
    "torch_compile": ["trainer.torch_compile=true"],
    # Label smoothing needs every logit; so little of it changes nothing else.
    "logits at every position": ["trainer.label_smoothing_factor=1e-9"],
    "all tokens learned": ["task.loss_on=all"],
    "all tokens learned, logits at every position": ["task.loss_on=all", "trainer.label_smoothing_factor=1e-9"],
    "plain again": [],
}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--output", type=Path, default=report.RESULTS / "knobs.md")
    given = parser.parse_args()
    where = report.machine()
    figures = {name: measured(knobs, given.steps) for name, knobs in KNOBS.items()}
    plain = figures["plain"]
    rows = [
        [
            name,
            f"{one['step_seconds']:.2f}",
            f"{one['step_seconds'] / plain['step_seconds']:.2f}",
            f"{one['peak_mib']:.0f}",
            f"{one['peak_mib'] / plain['peak_mib']:.2f}",
        ]
        for name, one in figures.items()
    ]
    table = report.table(["knob", "s a step", "÷ plain", "peak MiB", "÷ plain"], rows)
    report.write(
        given.output, "Knobs of memory and speed", [__doc__.split("\n\n")[1], table], {"knobs": figures}, where
    )


def measured(knobs: list[str], steps: int) -> dict[str, Any]:
    """Seconds a step, and the peak memory of the process."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        command = [
            sys.executable, "-m", "peftrun", f"trainer.max_steps={steps}", "trainer.warmup_steps=0", "trainer.logging_steps=1",
            "trainer.save_strategy=no", "action.evaluate_before=false", "task.data.num_test_rows=4", f"hydra.run.dir={run}", *knobs,
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=name, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, code, usage = wait(process)
        if code:
            raise SystemExit(f"{knobs}: exit code {code}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "step_seconds": (rows[-1]["seconds"] - rows[1]["seconds"]) / (rows[-1]["step"] - rows[1]["step"]),
        "peak_mib": usage.ru_maxrss / 1024,
    }


def wait(process: subprocess.Popen[bytes]) -> tuple[int, int, resource.struct_rusage]:
    """Process id, exit code, resources used."""
    import os

    pid, status, usage = os.wait4(process.pid, 0)
    time.sleep(0.5)  # let the machine settle before the next row
    return pid, os.waitstatus_to_exitcode(status), usage


if __name__ == "__main__":
    main()
