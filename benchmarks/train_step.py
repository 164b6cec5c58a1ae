"""How fast peftrun trains, against what a user would write by hand on the same libraries with their defaults.

    peftrun        peftrun's own path with its default config: load_base, attach, training.loop.fit
    trainer        transformers.Trainer, peft.LoraConfig, DataCollatorForSeq2Seq; the base in the dtype of its files
    trainer_bf16   the same on a bfloat16 base: tells the gain from the dtype apart from the gain from the rest
    trl            trl.SFTTrainer(peft_config=...), TRL's defaults (gradient checkpointing is on) but bf16=False on a CPU
    trl_autocast   trl.SFTTrainer with every default, so bf16 autocast over the same float32 base

Same for all: base, tokenised rows in the same order (checked by a digest of every batch), seed, LoRA settings (a default
run's), batch size, learning rate, schedule, number of steps, offline libraries. Everything else is each side's default:
peftrun logs every 5 steps and saves checkpoints every 20, and pays for both. On a CPU `use_cpu` is set for all. Each
contestant is a process of its own; all run once a round, one after another, and a ratio is taken within its round. One
untimed process first converts the embedded base and fills the caches, as the first run ever would.

    python benchmarks/train_step.py [--task NAME] [--repeats N] [--steps N] [--contestants NAME ...] [--output FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

WARM_UP = 2  # steps left out of the time per step
NAMES = ("peftrun", "trainer", "trainer_bf16", "trl", "trl_autocast")
MEASURES = {"step_seconds": ("s / step", 3), "wall_seconds": ("process, s", 1), "peak_mib": ("peak memory, MiB", 0)}
NOTE = (
    "A step: mean time, logging and checkpoints included, without the first {warm_up}. Process: wall time from its start "
    "to its exit without the time of the held-out evaluation. Peak memory: resident set, before the evaluation. "
    "{steps}, median (min–max) of {rounds} interleaved rounds. A ratio above 1 is in peftrun's favour."
)


def main() -> None:
    """Runs every contestant in every round, checks that all saw the same batches, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="above 10, the warm-up of the default schedule")
    parser.add_argument("--contestants", nargs="+", choices=NAMES[1:], default=NAMES[1:], help="beside peftrun")
    parser.add_argument("--task", default="sms_spam", help="of conf/task/; wiki_text: every token is learned")
    parser.add_argument(
        "--output", type=Path, help="where the tables go; default: results/train_step.md, or train_step_TASK.md"
    )
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # what this script starts itself with
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        import contestants

        return contestants.main(options.contestant, options.base, options.task, options.steps, WARM_UP)
    where = report.machine()
    base = launch("prepare", options.task, options.steps, None)["base"]
    rounds = [
        {name: launch(name, options.task, options.steps, base) for name in ("peftrun", *options.contestants)}
        for _ in range(options.repeats)
    ]
    if len({found["batches"] for one in rounds for found in one.values()}) != 1:
        sys.exit("the contestants did not see the same batches")
    name = "train_step.md" if options.task == "sms_spam" else f"train_step_{options.task}.md"
    write(options.output or report.RESULTS / name, rounds, f"task={options.task}, {options.steps} steps", where)
    return None


def launch(name: str, task: str, steps: int, base: str | None) -> dict[str, Any]:
    """What a contestant reports from a process of its own, and how long that process took."""
    arguments = ["--contestant", name, "--task", task, "--steps", str(steps), *(["--base", base] if base else [])]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            cwd=folder,
            env=os.environ | quiet | {"BENCHMARK_STARTED": str(time.time())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["wall_seconds"] = seconds - found.get("evaluate_seconds", 0.0)
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return found


def write(output: Path, rounds: list[dict[str, dict[str, Any]]], steps: str, where: dict[str, Any]) -> None:
    """Two tables, ratios first."""
    each = {name: [one[name] for one in rounds] for name in rounds[0]}
    ratios = {
        name: {
            key: report.ratios([run[key] for run in runs], [run[key] for run in each["peftrun"]]) for key in MEASURES
        }
        for name, runs in each.items()
        if name != "peftrun"
    }
    spreads = {name: {key: report.spread(run[key] for run in runs) for key in MEASURES} for name, runs in each.items()}
    parts = [
        NOTE.format(warm_up=WARM_UP, steps=steps, rounds=len(rounds)),
        report.table(
            ["÷ peftrun", "time per step", "process", "peak memory"],
            [[name, *(report.cells(found[key]) for key in MEASURES)] for name, found in ratios.items()],
        ),
        report.table(
            ["contestant", *(title for title, _ in MEASURES.values()), "first step after, s", "base", "threads"],
            [figures_row(name, spreads[name], runs) for name, runs in each.items()],
        ),
        "Held out, after training (the same rows, each model in its own dtype):",
        quality(each),
    ]
    figures = {"steps": steps, "ratios_to_peftrun": ratios, "spreads": spreads, "runs": each}
    report.write(output, "A training step", parts, figures, where)


def figures_row(name: str, spreads: dict[str, dict[str, float]], runs: list[dict[str, Any]]) -> list[Any]:
    """Absolute figures of one contestant."""
    measured = [report.cells(spreads[key], digits) for key, (_, digits) in MEASURES.items()]
    ready = report.cells(report.spread(run["setup_seconds"] for run in runs), 1)
    return [name, *measured, ready, runs[0]["dtype"], runs[0]["threads"]]


def quality(each: dict[str, list[dict[str, Any]]]) -> str:
    """Held-out metrics of each contestant, so that speed is not bought with them."""
    metrics = list(each["peftrun"][0]["held_out"])
    rows = [
        [name, *(report.cells(report.spread(run["held_out"][key] for run in runs), 4) for key in metrics)]
        for name, runs in each.items()
    ]
    return report.table(["contestant", *metrics], rows)


if __name__ == "__main__":
    main()
